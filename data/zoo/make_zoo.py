"""A zoo of short runs: some made sick on purpose, one mistake each, and some healthy. The doctor is tried on them.

python data/zoo/make_zoo.py                    all of it: train, store seeds 10 to 12, write table.csv
python data/zoo/make_zoo.py dead_groups        the runs of this kind, on all seeds
python data/zoo/make_zoo.py --table            table.csv alone, from the runs that are stored

The thresholds of minirl/doctor were chosen on seeds 0 to 2, which are not stored; the table and the tests use 10 to 12.
"""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "studies")]  # it runs from a checkout that is not installed

from standing_in import standing_in  # noqa: E402

from minirl.advantages import gae, group_relative_advantages  # noqa: E402
from minirl.doctor import NEEDS, diagnose  # noqa: E402
from minirl.kl import kl_k1  # noqa: E402
from minirl.losses.policy import ppo_clip_loss  # noqa: E402
from minirl.losses.preference import dpo_loss  # noqa: E402
from minirl.model import PolicyWithValue, RewardModel, Transformer, summed  # noqa: E402
from minirl.pretrained import load_pretrained, load_reward_model  # noqa: E402
from minirl.rewards import kl_shaped_rewards  # noqa: E402
from minirl.road import copy_of  # noqa: E402
from minirl.rollout import (  # noqa: E402
    model_scorer,
    preference_pairs,
    response_logprobs_and_values,
    roll_out,
    rule_scorer,
)
from minirl.run import Run  # noqa: E402
from minirl.tasks import DATA, digit_sum, stories  # noqa: E402
from minirl.train import dpo, grpo, kto, ppo, pretrain, reward_model, sft  # noqa: E402
from minirl.train.critic_free import (  # noqa: E402
    DAPO,
    DR_GRPO,
    GRPO,
    GRPO_KL_IN_REWARD,
    REINFORCE,
    RLOO,
    token_ratio,
)
from minirl.train.optimizer import adamw  # noqa: E402
from minirl.train.settings import tiny_transformer  # noqa: E402

CHOSEN_ON, STORED = (0, 1, 2), (10, 11, 12)
NAMES = ("non_finite", *NEEDS)
DIGITS = grpo.GRPOConfig(steps=16, prompts=8, group_size=16, minibatch=128, max_new_tokens=12, lr=7e-4, warmup=3)
TALES = grpo.GRPOConfig(
    steps=16, prompts=8, group_size=8, minibatch=32, epochs=2, max_new_tokens=40, kl_coef=0.3, lr=6e-4
)
ACTOR = ppo.PPOConfig(steps=16, batch=64, minibatch=32, epochs=2, max_new_tokens=40, kl_coef=0.25, lr=6e-4)
ACTOR_DIGITS = ppo.PPOConfig(
    steps=16, batch=128, minibatch=64, epochs=2, max_new_tokens=12, kl_coef=0.0, lam=1.0, lr=5e-4
)
PAIRS = dpo.DPOConfig(steps=24, pairs=64, beta=0.2, lr=4e-4, warmup=3)

# Worlds


def start(world: str) -> tuple[Transformer, object]:
    model, tokenizer = load_pretrained(DATA / "weights" / f"{world}_sft")
    return model, tokenizer


ref, words = start("stories")
digits_ref, characters = start("digit_sum")
ref.requires_grad_(False), digits_ref.requires_grad_(False)
judge, _ = load_reward_model(DATA / "weights" / "stories_reward_model")
proxy, gold = model_scorer(judge.requires_grad_(False)), rule_scorer(stories.gold, words)
right = rule_scorer(digit_sum.score, characters)


def pairs(seed: int):
    dice = torch.Generator().manual_seed(seed + 10_000)
    texts, told = roll_out(ref, words, stories.prompts(400, dice), max_new_tokens=40, group_size=2, generator=dice)
    scores = gold(texts, told)
    return preference_pairs(told, stories.label(scores[::2], scores[1::2], dice))


# Runs. Each returns the records of a training loop of the library; `stands_in` replaces functions inside that loop.


def ppo_run(seed, *, config=ACTOR, stands_in=None, gae=gae, watch=None, score=proxy, actor=None, **changes):
    run, config = Run(progress=False), replace(config, seed=seed, **changes)
    actor = actor or PolicyWithValue(copy_of(ref))
    actor.policy.ops = replace(actor.policy.ops, gae=gae)
    with standing_in(ppo, stands_in or {}):
        ppo.train(actor, ref, words, stories.prompts, score, config, run, watch=watch)
    return run.records


def ppo_digits(seed, **changes) -> list[dict]:
    run, config = Run(progress=False), replace(ACTOR_DIGITS, seed=seed, **changes)
    actor = PolicyWithValue(copy_of(digits_ref))
    ppo.train(actor, digits_ref, characters, digit_sum.prompts, right, config, run)
    return run.records


def tales(seed, *, row=GRPO_KL_IN_REWARD, sample=roll_out, watch=None, score=proxy, anchor=None, **changes):
    run, config = Run(progress=False), replace(TALES, seed=seed, **changes)
    world = (copy_of(ref), anchor or ref, words, stories.prompts, score)
    grpo.train(*world, config, run, row=row, watch=watch, sample=sample)
    return run.records


def digits(seed, *, row=GRPO, score=right, prompts=digit_sum.prompts, anchor=None, **changes):
    run, config = Run(progress=False), replace(DIGITS, seed=seed)
    config = replace(config, **{("prompts" if name == "n_prompts" else name): value for name, value in changes.items()})
    grpo.train(copy_of(digits_ref), anchor, characters, prompts, score, config, run, row=row)
    return run.records


def pair_run(seed, *, row=dpo.DPO, **changes) -> list[dict]:
    run = Run(progress=False)
    dpo.train(copy_of(ref), ref, pairs(seed), replace(PAIRS, seed=seed, **changes), run, row=row)
    return run.records


def kto_run(seed) -> list[dict]:
    run = Run(progress=False)
    config = kto.KTOConfig(steps=24, batch=128, beta=0.2, lr=4e-4, warmup=3, seed=seed)
    kto.train(copy_of(ref), ref, pairs(seed), config, run)
    return run.records


def judge_run(seed) -> list[dict]:
    run, config = Run(progress=False), reward_model.RewardModelConfig(steps=24, pairs=64, lr=1e-3, warmup=3, seed=seed)
    reward_model.train(RewardModel(copy_of(ref), summed), pairs(seed), config, run)
    return run.records


def sft_run(seed, **changes) -> list[dict]:
    run, config = Run(progress=False), replace(sft.SFTConfig(steps=24, batch=64, warmup=5), seed=seed, **changes)
    model, tokenizer = load_pretrained(DATA / "weights" / "digit_sum_pretrain")
    sft.train(model, tokenizer, digit_sum.demonstrations, config, run)
    return run.records


def pretrain_run(seed, **changes) -> list[dict]:
    torch.manual_seed(seed)
    run, config = Run(progress=False), pretrain.PretrainConfig(steps=40, batch=64, lr=5e-3, warmup=20, seed=seed)
    model = Transformer(tiny_transformer(characters.vocab_size))
    pretrain.train(model, characters, digit_sum.pretraining_examples, replace(config, **changes), run)
    return run.records


# Mistakes


def old_is_new(logprobs, old_logprobs, advantages, mask, config, reduce):
    """The old log-probabilities are computed again at every update, so that every ratio is 1."""
    return token_ratio(logprobs, logprobs.detach(), advantages, mask, config, reduce)


def only_the_value_head(model):
    return adamw(model.value_head)


def k1_swapped(logprobs, ref_logprobs):
    return kl_k1(ref_logprobs, logprobs)


def no_clip(logprobs, old_logprobs, advantages, mask, *, clip_eps, reduce):
    return ppo_clip_loss(logprobs, old_logprobs, advantages, mask, clip_eps=1.0, clip_eps_high=1e6, reduce=reduce)


def on_the_last_column(scores, kl, mask, *, kl_coef):
    """The score where the tensor ends, which is inside the mask of the longest responses only."""
    rewards = kl_shaped_rewards(torch.zeros_like(scores), kl, mask, kl_coef=kl_coef)
    rewards[:, -1] += scores
    return rewards


def at_another_temperature(factor: float):
    def sampled(*inputs, temperature, **knobs):
        return roll_out(*inputs, temperature=factor * temperature, **knobs)

    return sampled


def values_counted_four_times(*inputs, **knobs):
    """returns = advantages + 4 values: each step the critic is asked for more than it said."""
    advantages, returns = gae(*inputs, **knobs)
    return advantages, 4 * returns - 3 * advantages


def entropy_as_a_cost(*inputs, entropy_gradient=True, **knobs):
    return response_logprobs_and_values(*inputs, entropy_gradient=True, **knobs)


def strange_critic() -> PolicyWithValue:
    """Its value head comes from elsewhere, and value_coef = 0 keeps it as it is."""
    actor = PolicyWithValue(copy_of(ref))
    torch.nn.init.normal_(actor.value_head.weight, std=0.3)
    return actor


def paid_for_length(texts, told):
    return proxy(texts, told) + 0.3 * told.mask.sum(1)


def paid_for_brevity(texts, told):
    return proxy(texts, told) - 0.5 * told.mask.sum(1)


def never_right(texts, told):
    """A checker that looks for a format nobody writes."""
    return torch.zeros(len(told))


def wrong_sign(scores, group_size):
    return -group_relative_advantages(scores, group_size)


def backwards(chosen, rejected, ref_chosen, ref_rejected, config):
    loss, stats = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=config.beta)
    return 2 * math.log(2) - loss, stats


def log_of_a_softmax(seed: int, steps: int = 24, lr: float = 300.0) -> list[dict]:
    """A loop that looks at nothing. Its rate grows, a probability becomes 0, the logarithm of it is infinite, and on it goes."""
    model, tokenizer = load_pretrained(DATA / "weights" / "digit_sum_pretrain")
    dice, records = torch.Generator().manual_seed(seed), []
    for step in range(1, steps + 1):
        rate = lr * (step / steps) ** 4
        questions, answers = digit_sum.examples(32, dice, worked_share=1.0)
        tokens = torch.tensor([tokenizer.encode(q + a) for q, a in zip(questions, answers, strict=True)])
        probabilities = model(tokens[:, :-1]).softmax(-1).gather(-1, tokens[:, 1:, None])
        loss = -probabilities.log().mean()
        model.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters()))
        with torch.no_grad():
            for p in model.parameters():
                p -= rate * p.grad
        records.append({"step": step, "loss": loss.item(), "grad_norm": norm.item(), "lr": rate})
    return records


def reference_renewed(seed: int) -> list[dict]:
    """The reference is replaced by the policy after every step: the logged KL stays small whatever happens."""
    anchor, seen = copy_of(ref).requires_grad_(False), {}

    def score(texts, told):
        anchor.load_state_dict(seen.get("before", ref.state_dict()))
        return proxy(texts, told)

    def watch(texts, told):
        return gold(texts, told)

    def sampled(policy, *inputs, **knobs):
        seen["before"], seen["now"] = (
            seen.get("now", ref.state_dict()),
            {name: x.clone() for name, x in policy.state_dict().items()},
        )
        return roll_out(policy, *inputs, **knobs)

    return tales(seed, sample=sampled, score=score, watch=watch, anchor=anchor, steps=24)


# The kinds


@dataclass(frozen=True)
class Kind:
    sick: str  # what the doctor should name, "" for a healthy run
    make: Callable[[int], list[dict]]
    about: str
    updates: int = 0  # gradient steps a batch, where the log says so


KINDS = {
    # healthy
    "ppo": Kind("", ppo_run, "stories, KL in the reward, beta 0.25"),
    "ppo_gold": Kind("", lambda s: ppo_run(s, watch=gold, kl_coef=0.4), "the same at beta 0.4, gold watched"),
    "ppo_digits": Kind("", ppo_digits, "digit sums, lambda 1, no KL"),
    "grpo": Kind("", digits, "digit sums, one update a batch: loss 0 and ratio 1 throughout"),
    "grpo_stories": Kind("", lambda s: tales(s, watch=gold), "stories, KL in the reward, four updates a batch"),
    "grpo_four_updates": Kind("", lambda s: digits(s, minibatch=64, epochs=2), "digit sums, four updates a batch"),
    "dr_grpo": Kind("", lambda s: digits(s, row=DR_GRPO), "digit sums"),
    "dapo": Kind("", lambda s: digits(s, row=DAPO, clip_eps_high=0.28), "digit sums, dynamic sampling"),
    "rloo": Kind("", lambda s: digits(s, row=RLOO, lr=3e-4), "digit sums"),
    "reinforce": Kind("", lambda s: digits(s, row=REINFORCE, lr=3e-4), "digit sums"),
    "dpo": Kind("", pair_run, "stories, beta 0.2"),
    "ipo": Kind("", lambda s: pair_run(s, row=dpo.IPO, beta=0.5), "stories"),
    "kto": Kind("", kto_run, "stories"),
    "reward_model": Kind("", judge_run, "stories"),
    "sft": Kind("", sft_run, "digit sums"),
    "pretrain": Kind("", pretrain_run, "digit sums, from random weights"),
    # sick
    "zero_loss_at_start": Kind(
        "zero_loss_at_start", lambda s: digits(s, steps=4, warmup=20), "GRPO, asked after 4 steps"
    ),
    "ratio_always_one": Kind(
        "ratio_always_one",
        lambda s: ppo_run(s, stands_in={"adamw": only_the_value_head}),
        "PPO whose optimiser holds the value head alone",
    ),
    "ratio_recomputed": Kind(
        "ratio_always_one",
        lambda s: digits(s, row=replace(GRPO, surrogate=old_is_new), minibatch=64, epochs=2),
        "old log-probabilities computed anew at each of four updates",
        updates=4,
    ),
    "negative_kl": Kind(
        "negative_kl", lambda s: ppo_run(s, stands_in={"kl_k1": k1_swapped}), "k1 with its arguments swapped"
    ),
    "kl_growing": Kind("kl_growing", lambda s: ppo_run(s, kl_coef=0.0, lr=1e-3, steps=18), "no price on KL"),
    "clip_fraction_zero": Kind(
        "clip_fraction_zero", lambda s: ppo_run(s, stands_in={"ppo_clip_loss": no_clip}, epochs=4), "the clip left out"
    ),
    "clip_fraction_high": Kind(
        "clip_fraction_high",
        lambda s: digits(s, clip_eps=3e-4, minibatch=32, epochs=2),
        "the clip_eps of GSPO with the ratios of GRPO",
    ),
    "entropy_collapse": Kind(
        "entropy_collapse",
        lambda s: ppo_run(s, entropy_coef=-1.0, lr=1e-3, stands_in={"response_logprobs_and_values": entropy_as_a_cost}),
        "an entropy bonus with the wrong sign",
    ),
    "dead_groups": Kind("dead_groups", lambda s: digits(s, score=never_right), "a checker that nothing satisfies"),
    "dead_groups_cold": Kind(
        "dead_groups",
        lambda s: digits(s, temperature=0.1, n_prompts=32, group_size=4),
        "sampled at temperature 0.1, groups of 4: it only guesses",
    ),
    "falling_chosen_logprobs": Kind(
        "falling_chosen_logprobs", lambda s: pair_run(s, beta=0.01, lr=2e-3), "DPO with beta 0.01 and a high rate"
    ),
    "negative_explained_variance": Kind(
        "negative_explained_variance",
        lambda s: ppo_run(s, actor=strange_critic(), value_coef=0.0),
        "a value head that is never trained",
    ),
    "value_loss_exploding": Kind(
        "value_loss_exploding",
        lambda s: ppo_run(
            s,
            gae=values_counted_four_times,
            actor=PolicyWithValue(copy_of(ref), copy_of(ref)),
            lr=1e-3,
            value_clip_eps=100.0,
            kl_coef=0.5,
        ),
        "values counted four times in the returns, a critic of its own",
    ),
    "length_running_away": Kind(
        "length_running_away",
        lambda s: tales(s, score=paid_for_length, kl_coef=0.0, lr=1e-3),
        "every token is paid for",
    ),
    "proxy_up_win_rate_down": Kind(
        "proxy_up_win_rate_down",
        lambda s: ppo_run(s, watch=gold, kl_coef=0.0, lr=1e-3, steps=18),
        "no price on KL, gold watched",
    ),
    "reference_renewed": Kind("proxy_up_win_rate_down", reference_renewed, "the reference follows the policy"),
    "reward_on_padding": Kind(
        "reward_on_padding",
        lambda s: ppo_run(s, stands_in={"kl_shaped_rewards": on_the_last_column}),
        "the score in the last column",
    ),
    "temperature_mismatch": Kind(
        "temperature_mismatch",
        lambda s: tales(s, sample=at_another_temperature(1.4)),
        "sampled at 1.4, trained at 1",
    ),
    "temperature_mismatch_cold": Kind(
        "temperature_mismatch",
        lambda s: tales(s, sample=at_another_temperature(0.7)),
        "sampled at 0.7, trained at 1",
    ),
    "non_finite": Kind("non_finite", log_of_a_softmax, "the logarithm of a softmax, and nobody looks"),
    "loss_diverging": Kind(
        "loss_diverging", lambda s: sft_run(s, lr=0.3), "SFT with a rate three hundred times too high"
    ),
    "reward_flat": Kind("reward_flat", lambda s: ppo_run(s, lr=1e-7), "a rate a thousand times too low"),
    "reward_falling": Kind(
        "reward_falling",
        lambda s: digits(s, row=replace(GRPO, advantages=wrong_sign), n_prompts=24, minibatch=384, lr=1e-3),
        "advantages with the wrong sign",
    ),
    "never_finishes": Kind("never_finishes", lambda s: digits(s, max_new_tokens=2), "room for 2 tokens of 3"),
    "length_collapse": Kind("length_collapse", lambda s: tales(s, score=paid_for_brevity), "every token costs"),
    "learning_rate_zero": Kind(
        "learning_rate_zero", lambda s: tales(s, lr=0.0), "a schedule that ended before it began"
    ),
    "accuracy_below_half": Kind(
        "accuracy_below_half", lambda s: pair_run(s, row=replace(dpo.DPO, loss=backwards)), "DPO, the loss upside down"
    ),
}

# TRL's names. Nothing was trained with TRL for these: they are our records under its names, with its conventions.

GRPO_TRL = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "lr": "learning_rate",
    "reward_mean": "reward",
    "reward_std": "reward_std",
    "dead_groups": "frac_reward_zero_std",
    "length_mean": "completions/mean_length",
    "entropy": "entropy",
    "clip_fraction": "clip_ratio/region_mean",
    "kl": "kl",
}
PPO_TRL = {
    "kl": "objective/kl",
    "entropy": "policy/entropy_avg",
    "reward_mean": "objective/scores",
    "approx_kl": "policy/approxkl_avg",
    "clip_fraction": "policy/clipfrac_avg",
    "policy_loss": "loss/policy_avg",
    "value_loss": "loss/value_avg",
    "ratio_mean": "val/ratio",
    "lr": "lr",
}
CLASSIC = {
    "kl": "objective/kl",
    "kl_coef": "objective/kl_coef",
    "entropy": "ppo/policy/entropy",
    "reward_mean": "ppo/mean_scores",
    "reward_std": "ppo/std_scores",
    "approx_kl": "ppo/policy/approxkl",
    "clip_fraction": "ppo/policy/clipfrac",
    "policy_loss": "ppo/loss/policy",
    "value_loss": "ppo/loss/value",
    "explained_variance": "ppo/val/var_explained",
    "value_mean": "ppo/val/mean",
    "return_mean": "ppo/returns/mean",
    "length_mean": "tokens/responses_len_mean",
    "lr": "ppo/learning_rate",
}
PAIRS_TRL = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "lr": "learning_rate",
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "chosen_logprobs": "logps/chosen",
    "rejected_logprobs": "logps/rejected",
}
TRANSLATED = {  # of seed 10
    "trl_grpo": ("grpo", GRPO_TRL),
    "trl_grpo_stories": ("grpo_stories", GRPO_TRL),
    "trl_length_running_away": ("length_running_away", GRPO_TRL),
    "trl_dead_groups": ("dead_groups", GRPO_TRL),
    "trl_ppo": ("ppo", PPO_TRL),
    "trl_kl_growing": ("kl_growing", PPO_TRL),
    "trl_classic": ("ppo_digits", CLASSIC),
    "trl_classic_negative_explained_variance": ("negative_explained_variance", CLASSIC),
    "trl_dpo": ("dpo", PAIRS_TRL),
    "trl_falling_chosen_logprobs": ("falling_chosen_logprobs", PAIRS_TRL),
}


def in_trl(record: dict, names: dict[str, str]) -> dict:
    row = {"step": record["step"]} | {names[name]: value for name, value in record.items() if name in names}
    if names is GRPO_TRL:
        row["completions/clipped_ratio"] = rounded(1 - record["finished"])
        if "kl" in row:  # TRL's is a mean over tokens
            row["kl"] = rounded(row["kl"] / record["length_mean"])
    return row


# Storing


def rounded(x: float) -> float:
    return float(f"{x:.5g}")


def records_of(name: str, seed: int) -> list[dict]:
    """The run, rounded to five digits; `updates` in its first record where the folder of a run would say so."""
    kind = KINDS[name]
    records = [{k: v if k == "step" else rounded(v) for k, v in record.items()} for record in kind.make(seed)]
    if kind.updates:
        records[0]["updates"] = kind.updates
    return records


def write(name: str, seed: int, records: list[dict]) -> None:
    lines = [json.dumps(record, separators=(",", ":")) + "\n" for record in records]
    (HERE / f"{name}_seed{seed}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sick_of(path: Path) -> str:
    """What the run of a stored file suffers from, "" if from nothing."""
    name = path.stem.rpartition("_seed")[0]
    return KINDS[TRANSLATED[name][0] if name in TRANSLATED else name].sick


def table(runs: list[tuple[str, list[dict]]]) -> list[dict]:
    """One row a sickness, from pairs (sickness or "", records): in how many of its runs it is named first and named at all,
    and in how many healthy runs it is named."""
    named = [(sick, [d.name for d in diagnose(records)]) for sick, records in runs]
    rows = []
    for name in NAMES:
        of = [names for sick, names in named if sick == name]
        healthy = [names for sick, names in named if not sick]
        rows.append(
            {
                "sickness": name,
                "runs": len(of),
                "named_first": sum(names[:1] == [name] for names in of),
                "named": sum(name in names for names in of),
                "healthy_runs": len(healthy),
                "false_alarms": sum(name in names for names in healthy),
            }
        )
    return rows


def stored() -> list[Path]:
    return sorted(HERE.glob("*_seed*.jsonl"))


def write_table() -> None:
    rows = table([(sick_of(path), read(path)) for path in stored()])
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (HERE / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = [name for name in sys.argv[1:] if name != "--table"]
    for name in [] if "--table" in sys.argv else chosen or KINDS:
        for seed in STORED:
            write(name, seed, records_of(name, seed))
            print(name, seed, flush=True)
    for name, (source, names) in TRANSLATED.items():
        found = read(HERE / f"{source}_seed{STORED[0]}.jsonl")
        write(name, STORED[0], [in_trl(record, names) for record in found])
    write_table()
