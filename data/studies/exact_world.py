"""Every training loop in a world whose optimum is known: how far from pi* = pi_ref exp(r / beta) / Z it ends, in total
variation, on seeds 10, 11, 12. About twenty-five minutes on one CPU core. The settings were chosen on 0 to 3; those of the
long world (its length, rate and batch) were changed after other settings had failed on 10 to 12, then tried on 0 and 1.

python data/studies/exact_world.py                 all of it
python data/studies/exact_world.py ppo rloo        these variants, printed and not stored

A seed decides the reference, the scores and the samples. Scores are spread evenly with standard deviation 1, in random
order, so that no single answer holds all the probability; the empty answer is worth least. Three worlds:

    fixed   5 tokens, always 3 of them: 125 sequences
    long    3 tokens, one of them the end token, at most 6: 127 sequences of 1 to 6 tokens
    open    the same with at most 4: 31 sequences
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from store import write

from minirl import exact
from minirl.advantages import group_centered_advantages
from minirl.kl import kl_k1, kl_k2
from minirl.losses.preference import dpo_loss
from minirl.masking import blank
from minirl.model import PolicyWithValue, RewardModel, Transformer, TransformerConfig, last_token
from minirl.road import copy_of
from minirl.run import Run
from minirl.train import critic_free, dpo, grpo, kto, ppo, pretrain, reward_model, sft
from minirl.types import PreferenceBatch

SETTINGS = {
    "model": {"width": 32, "layers": 1, "heads": 4, "ffn": 64, "max_length": 8, "positions": "learned"},
    "fixed": {"vocab_size": 5, "max_length": 3, "eos": None},
    "long": {"vocab_size": 3, "max_length": 6, "eos": 0},
    "open": {"vocab_size": 3, "max_length": 4, "eos": 0},
    "beta": {"fixed": 0.4, "long": 0.4, "open": 1.0},
    "rl": {
        "fixed": {"stages": [(250, 4e-3), (120, 1e-3), (100, 2e-4), (80, 5e-5)], "batch": 256},
        "long": {"stages": [(300, 2e-3), (150, 8e-4), (100, 2e-4), (60, 5e-5)], "batch": 512},
    },
    "group_size": 8,
    "pairs": {"stages": [(300, 4e-3), (200, 1e-3), (100, 2e-4), (50, 5e-5)], "batch": 512},
    "seeds": [10, 11, 12],
}
SEEDS = SETTINGS["seeds"]


class Setting:
    """One world with its reference, its scores and its optimum."""

    def __init__(self, world: str, seed: int):
        torch.manual_seed(seed)
        self.name, self.seed, self.beta = world, seed, SETTINGS["beta"][world]
        self.world = exact.World(**SETTINGS[world])
        self.ref = Transformer(TransformerConfig(vocab_size=self.world.vocab_size, **SETTINGS["model"]))
        with torch.no_grad():
            self.ref.head.weight.mul_(0.5)  # logits of standard deviation .65: no token is nearly excluded
        self.scores = torch.linspace(-(3**0.5), 3**0.5, len(self.world))[torch.randperm(len(self.world))]
        if (
            self.world.eos is not None
        ):  # nothing is worth less than the empty answer, which the reference likes too well
            empty, worst = self.world.sequences.index((self.world.eos,)), int(self.scores.argmin())
            self.scores[[empty, worst]] = self.scores[[worst, empty]]
        self.ref_logp = self.logp(self.ref)
        self.best, _ = exact.optimum(self.ref_logp, self.scores.double(), beta=self.beta)

    @torch.no_grad()
    def logp(self, model: Transformer) -> torch.Tensor:
        return exact.sequence_logprobs(self.world, exact.policy_logits(self.world, model).double())

    def distances(self, logp: torch.Tensor) -> dict:
        return {
            "tv": float(exact.total_variation(logp, self.best)),
            "kl": float(exact.kl(logp, self.ref_logp)),
            "best_kl": float(exact.kl(self.best, self.ref_logp)),
        }


def rl_stages(setting: Setting) -> tuple[int, list[dict]]:
    """Answers a step, and the knobs of each stage. The rate falls, so that the last stage ends near the optimum and not in
    noise around it."""
    length, settings = setting.world.max_length, SETTINGS["rl"][setting.name]
    return settings["batch"], [
        {"steps": steps, "lr": lr, "max_new_tokens": length, "seed": 1000 * setting.seed + i}
        for i, (steps, lr) in enumerate(settings["stages"])
    ]


def by_ppo(setting: Setting, gamma: float = 1.0) -> dict:
    policy, world = copy_of(setting.ref), setting.world
    batch, stages = rl_stages(setting)
    for stage in stages:
        config = ppo.PPOConfig(
            batch=batch,
            minibatch=batch,
            epochs=1,
            gamma=gamma,
            lam=1.0,
            kl_coef=setting.beta,
            value_clip_eps=5.0,
            **stage,
        )
        score = world.scorer(setting.scores)
        ppo.train(PolicyWithValue(policy), setting.ref, world.tokenizer(), world.prompts, score, config, quiet())
    return setting.distances(setting.logp(policy))


def by_row(setting: Setting, row: critic_free.CriticFree) -> dict:
    policy, world = copy_of(setting.ref), setting.world
    (batch, stages), group_size = rl_stages(setting), SETTINGS["group_size"]
    for stage in stages:
        config = grpo.GRPOConfig(
            prompts=batch // group_size, group_size=group_size, minibatch=batch, kl_coef=setting.beta, **stage
        )
        score = world.scorer(setting.scores)
        try:
            grpo.train(policy, setting.ref, world.tokenizer(), world.prompts, score, config, quiet(), row=row)
        except ValueError as error:  # DAPO has no KL, and ends where it writes one answer only, or none that ends
            if not str(error).startswith(("prompts:", "max_new_tokens:")):
                raise
            break
    return setting.distances(setting.logp(policy))


def pair_stages(setting: Setting) -> list[tuple[PreferenceBatch, dict]]:
    """Fresh pairs for each stage: both sequences drawn evenly from all, the label from Bradley-Terry of the true scores."""
    dice, stages = torch.Generator().manual_seed(setting.seed), []
    for i, (steps, lr) in enumerate(SETTINGS["pairs"]["stages"]):
        n, texts, mask = steps * SETTINGS["pairs"]["batch"], texts_of(setting.world), setting.world.mask
        first, second = torch.randint(len(mask), (2, n), generator=dice)
        first_wins = torch.rand(n, generator=dice) < (setting.scores[first] - setting.scores[second]).sigmoid()
        chosen, rejected = torch.where(first_wins, first, second), torch.where(first_wins, second, first)
        starts = torch.zeros(n, dtype=torch.long)
        pairs = PreferenceBatch(texts[chosen], texts[rejected], mask[chosen], mask[rejected], starts)
        stages.append((pairs, {"steps": steps, "lr": lr, "seed": 1000 * setting.seed + i}))
    return stages


def texts_of(world: exact.World) -> torch.Tensor:
    """Every sequence after the prompt, token 0."""
    return torch.cat([torch.zeros(len(world), 1, dtype=torch.long), world.tokens], 1)


def by_pairs(setting: Setting, row: dpo.PairLoss) -> dict:
    policy, pairs = copy_of(setting.ref), SETTINGS["pairs"]["batch"]
    for data, stage in pair_stages(setting):
        dpo.train(policy, setting.ref, data, dpo.DPOConfig(pairs=pairs, beta=setting.beta, **stage), quiet(), row=row)
    return setting.distances(setting.logp(policy))


def by_kto(setting: Setting) -> dict:
    policy, batch = copy_of(setting.ref), SETTINGS["pairs"]["batch"]
    for data, stage in pair_stages(setting):
        kto.train(policy, setting.ref, data, kto.KTOConfig(batch=batch, beta=setting.beta, **stage), quiet())
    return setting.distances(setting.logp(policy))


def by_reward_model(setting: Setting) -> dict:
    """The optimum for the LEARNED scores: what the reward model's mistakes alone cost."""
    model, pairs = RewardModel(copy_of(setting.ref), last_token), SETTINGS["pairs"]["batch"]
    for data, stage in pair_stages(setting):
        reward_model.train(model, data, reward_model.RewardModelConfig(pairs=pairs, weight_decay=0.0, **stage), quiet())
    with torch.no_grad():
        learned = model(texts_of(setting.world), setting.world.mask).double()
    return setting.distances(exact.optimum(setting.ref_logp, learned, beta=setting.beta)[0])


def by_copying(setting: Setting, loop) -> dict:
    """Likelihood on samples of pi* itself: what the loops that imitate do when they have the best teacher."""
    policy, world = copy_of(setting.ref), setting.world

    def examples(n: int, generator: torch.Generator) -> tuple[list[str], list[str]]:
        rows = torch.multinomial(setting.best.exp(), n, replacement=True, generator=generator)
        return ["a"] * n, ["".join(exact.LETTERS[token] for token in world.sequences[row]) for row in rows]

    for i, (steps, lr) in enumerate(SETTINGS["pairs"]["stages"]):
        config = {sft: sft.SFTConfig, pretrain: pretrain.PretrainConfig}[loop](
            steps=steps, batch=SETTINGS["pairs"]["batch"], lr=lr, seed=1000 * setting.seed + i
        )
        loop.train(policy, world.tokenizer(), examples, config, quiet())
    return setting.distances(setting.logp(policy))


def quiet() -> Run:
    return Run(progress=False)


def k1_penalty(logprobs, ref_logprobs, mask):
    return blank(kl_k1(logprobs, ref_logprobs), mask)


def k2_penalty(logprobs, ref_logprobs, mask):
    return blank(kl_k2(logprobs, ref_logprobs), mask)


def rl_row(name: str) -> Callable[[Setting], dict]:
    return lambda setting: by_row(setting, getattr(critic_free, name))


def in_the_loss(penalty) -> Callable[[Setting], dict]:
    """RLOO with its KL moved from the reward into the loss."""
    return lambda setting: by_row(setting, replace(critic_free.RLOO, charge=critic_free.free, penalty=penalty))


AVERAGED_DPO = dpo.PairLoss(dpo.average_logprobs, lambda c, r, rc, rr, config: dpo_loss(c, r, rc, rr, beta=config.beta))
SUMMED_IPO = dpo.PairLoss(dpo.sequence_logprobs, dpo.IPO.loss)
CENTERED = replace(critic_free.GRPO_KL_IN_REWARD, advantages=group_centered_advantages)

VARIANTS = {  # variant: (world, how it is trained)
    "ppo": ("fixed", by_ppo),
    "rloo": ("fixed", rl_row("RLOO")),
    "reinforce": ("fixed", rl_row("REINFORCE")),
    "grpo, KL in reward": ("fixed", rl_row("GRPO_KL_IN_REWARD")),
    "grpo, KL in reward, no std": ("fixed", lambda setting: by_row(setting, CENTERED)),
    "rloo, k1 in loss": ("fixed", in_the_loss(k1_penalty)),
    "rloo, k2 in loss": ("fixed", in_the_loss(k2_penalty)),
    "rloo, k3 in loss": ("fixed", in_the_loss(critic_free.k3_penalty)),
    "grpo": ("fixed", rl_row("GRPO")),
    "dr_grpo": ("fixed", rl_row("DR_GRPO")),
    "dapo": ("long", rl_row("DAPO")),
    "gspo": ("fixed", rl_row("GSPO")),
    "cispo": ("fixed", rl_row("CISPO")),
    "rejection": ("fixed", rl_row("REJECTION")),
    "rwr": ("fixed", rl_row("RWR")),
    "sft on samples of pi*": ("fixed", lambda setting: by_copying(setting, sft)),
    "pretrain on samples of pi*": ("fixed", lambda setting: by_copying(setting, pretrain)),
    "ppo, long": ("long", by_ppo),
    "ppo, gamma .9, long": ("long", lambda setting: by_ppo(setting, gamma=0.9)),
    "rloo, k3 in loss, long": ("long", in_the_loss(critic_free.k3_penalty)),
    "grpo, KL in reward, long": ("long", rl_row("GRPO_KL_IN_REWARD")),
    "reward model, open": ("open", by_reward_model),
    "dpo, open": ("open", lambda setting: by_pairs(setting, dpo.DPO)),
    "dpo, averaged, open": ("open", lambda setting: by_pairs(setting, AVERAGED_DPO)),
    "cdpo, open": ("open", lambda setting: by_pairs(setting, dpo.CDPO)),
    "robust, open": ("open", lambda setting: by_pairs(setting, dpo.ROBUST)),
    "ipo, open": ("open", lambda setting: by_pairs(setting, dpo.IPO)),
    "ipo, summed, open": ("open", lambda setting: by_pairs(setting, SUMMED_IPO)),
    "simpo, open": ("open", lambda setting: by_pairs(setting, dpo.SIMPO)),
    "orpo, open": ("open", lambda setting: by_pairs(setting, dpo.ORPO)),
    "kto, open": ("open", by_kto),
}


def row(variant: str, seed: int) -> dict:
    world, train = VARIANTS[variant]
    start = time.process_time()
    distances = train(Setting(world, seed))
    return {"variant": variant, "seed": seed} | distances | {"seconds": round(time.process_time() - start, 1)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:]:
        for name in sys.argv[1:]:
            for seed in SEEDS:
                print(row(name, seed), flush=True)
    else:
        write("exact_world", [row(name, seed) for name in VARIANTS for seed in SEEDS], SETTINGS)
