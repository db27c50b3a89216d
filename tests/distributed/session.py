"""What two processes compute, against one: run by test_ranks.py, once for all checks, since a start takes seconds.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python session.py OUT

Rank 0 writes OUT/found.json, {check: largest difference}. Everything is in float64, so that only the order of sums differs.
"""

import contextlib
import json
import sys
import warnings
from dataclasses import fields, replace
from pathlib import Path

import torch

from minirl import ranks as ranks_module
from minirl.checkpoint import checkpoints
from minirl.generate import generate
from minirl.masking import masked_whiten
from minirl.model import PolicyWithValue, Transformer, TransformerConfig
from minirl.ranks import ALONE, Ranks, exit_now, join
from minirl.rollout import gathered, preference_pairs, roll_out, rule_scorer, scorer_of_ranks
from minirl.run import Run
from minirl.shards import whole_state
from minirl.tasks import digit_sum
from minirl.train import critic_free, dpo, grpo, ppo

TOKENIZER = digit_sum.tokenizer()
PROMPTS = ["12=", "3456=", "999=", "1=", "77=", "123456="]


def small_model() -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=TOKENIZER.vocab_size, width=16, layers=2, heads=2, ffn=16, max_length=32)
    return Transformer(config).double()


def another_model() -> Transformer:
    """A reference that is not the model itself: log-ratios of 0 would hide a mistake."""
    ref = small_model().requires_grad_(False)
    for p in ref.parameters():
        p.mul_(1.1)
    return ref


def some_prompts(n, generator):
    return [PROMPTS[i] for i in torch.randint(len(PROMPTS), (n,), generator=generator).tolist()]


def unequal(prompts, responses):
    return [len(response) % 4 + 0.1 * len(prompt) for prompt, response in zip(prompts, responses, strict=True)]


def sampler(ranks: Ranks):
    def sample(*args, **knobs):
        return roll_out(*args, **knobs, ranks=ranks)

    return sample


def train_grpo(ranks: Ranks, run: Run | None = None, **knobs):
    row, sample = knobs.pop("row", critic_free.GRPO), knobs.pop("sample", sampler(ranks))
    knobs = {"steps": 2, "prompts": 5, "group_size": 3, "minibatch": 7, "epochs": 2, "kl_coef": 0.1, "lr": 1e-2} | knobs
    policy, ref, run = small_model(), another_model(), run or Run(progress=False)
    ranks.spread(policy, ref)
    score = scorer_of_ranks(rule_scorer(unequal, TOKENIZER), ranks, split=False)
    config = grpo.GRPOConfig(**knobs)
    grpo.train(policy, ref, TOKENIZER, some_prompts, score, config, run, row=row, sample=sample, ranks=ranks)
    return whole_state(policy), run.records


def train_ppo(ranks: Ranks, run: Run | None = None, **knobs):
    knobs = {"steps": 2, "batch": 11, "minibatch": 6, "max_new_tokens": 12, "lr": 1e-2} | knobs
    config = ppo.PPOConfig(kl_target=0.01, kl_horizon=50, entropy_coef=0.1, **knobs)
    model, ref, run = PolicyWithValue(small_model()), another_model(), run or Run(progress=False)
    ranks.spread(model, ref)
    score = scorer_of_ranks(rule_scorer(unequal, TOKENIZER), ranks, split=True)
    ppo.train(model, ref, TOKENIZER, some_prompts, score, config, run, sample=sampler(ranks), ranks=ranks)
    return whole_state(model), run.records


def train_dpo(ranks: Ranks, run: Run | None = None, **knobs):
    generator = torch.Generator().manual_seed(3)
    _, rollout = roll_out(small_model(), TOKENIZER, PROMPTS, max_new_tokens=12, group_size=2, generator=generator)
    pairs = preference_pairs(rollout, torch.tensor([True, False] * 3))
    policy, ref, run = small_model(), another_model(), run or Run(progress=False)
    ranks.spread(policy, ref)
    dpo.train(policy, ref, pairs, dpo.DPOConfig(steps=2, pairs=5, lr=1e-2, **knobs), run, ranks=ranks)
    return whole_state(policy), run.records


def rollouts_differ(ranks: Ranks, group_size: int) -> float:
    """The largest difference between what all ranks and what one process wrote: tokens, padding and masks have none."""
    knobs = {"max_new_tokens": 12, "group_size": group_size}
    prompts = [*PROMPTS, "4444=", "20="][: 7 if group_size == 1 else 1]  # not a multiple of two, and fewer than ranks
    ours, one = (
        roll_out(small_model(), TOKENIZER, prompts, generator=torch.Generator().manual_seed(1), ranks=place, **knobs)[1]
        for place in (ranks, ALONE)
    )
    pairs = [(getattr(ours, field.name), getattr(one, field.name)) for field in fields(one)]
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def largest_difference(mine, alone) -> float:
    """Between two trained states and their records; infinite where one has what the other lacks."""
    (weights, records), (whole, one) = mine, alone
    if weights.keys() != whole.keys() or len(records) != len(one):
        return float("inf")
    worst = max(float((weights[name] - x).abs().max()) for name, x in whole.items())
    for a, b in zip(records, one, strict=True):
        if a.keys() != b.keys():
            return float("inf")
        worst = max([worst, *(abs(a[key] - b[key]) / max(1.0, abs(b[key])) for key in b)])
    return worst


CASES = {
    "grpo": (train_grpo, {}),
    "grpo in parts": (train_grpo, {"micro_batch": 2, "steps": 1}),
    "dapo, groups sampled again": (train_grpo, {"row": critic_free.DAPO, "kl_coef": 0.0, "resample": 2}),
    "grpo, fewer rows than ranks": (train_grpo, {"minibatch": 1, "epochs": 1, "prompts": 1}),
    "ppo": (train_ppo, {}),
    "ppo in parts": (train_ppo, {"micro_batch": 2, "steps": 1}),
    "dpo": (train_dpo, {}),
    "dpo in parts": (train_dpo, {"micro_batch": 1}),
}


# Mistakes that people make here. Each has to be seen.


@contextlib.contextmanager
def replaced(module, name, mistake):
    right = getattr(module, name)
    setattr(module, name, mistake)
    try:
        yield
    finally:
        setattr(module, name, right)


def mean_of_means(reduce, mask, rows, micro):
    """Each rank's own mean, and the mean of those: a token of a rank with few tokens weighs more."""
    return lambda x, m: reduce(x, m) * len(micro) / len(rows)


def whitened_by_rank(x, mask):
    """Each rank whitens the advantages of the rows it wrote."""
    half = len(x) // 2
    return torch.cat([masked_whiten(x[:half], mask[:half]), masked_whiten(x[half:], mask[half:])])


def averaging(model):
    """DistributedDataParallel as it is: the mean over ranks, of what are shares of one mean already."""

    class Ready(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.learned = torch.nn.ParameterList(model.parameters())

        def forward(self):
            return None

    return torch.nn.parallel.DistributedDataParallel(Ready())


def noise_by_rank(ranks: Ranks):
    """Each rank draws noise for its own rows: the numbers then depend on how many ranks there are."""

    def sample(model, tokenizer, prompts, *, max_new_tokens, temperature, group_size, generator):
        own = [tokenizer.encode(prompt) for prompt in prompts[ranks.part(len(prompts))]]
        knobs = {"group_size": group_size, "eos": tokenizer.eos_id, "generator": generator}
        rollout = generate(model, own, max_new_tokens=max_new_tokens, temperature=temperature, **knobs)
        return [p for p in prompts for _ in range(group_size)], gathered(rollout, ranks, len(prompts), tokenizer.eos_id)

    return sample


def mistakes(ranks: Ranks):
    """(name, what was trained with it, how it is trained, with which knobs)"""
    knobs = {"row": replace(critic_free.DAPO, keep=critic_free.every_group), "kl_coef": 0.0, "steps": 1}
    with replaced(grpo, "share", mean_of_means):
        wrong = train_grpo(ranks, **knobs)
    yield "mean of means", wrong, train_grpo, knobs
    with replaced(ppo, "masked_whiten", whitened_by_rank):
        wrong = train_ppo(ranks, steps=1)
    yield "whitening by rank", wrong, train_ppo, {"steps": 1}
    with replaced(ranks_module, "_data_parallel", averaging):
        wrong = train_grpo(ranks, steps=1)
    yield "gradients averaged", wrong, train_grpo, {"steps": 1}
    yield "noise by rank", train_grpo(ranks, steps=1, sample=noise_by_rank(ranks)), train_grpo, {"steps": 1}


# Checkpoints, here and in test_ranks.py.


def resumed(ranks: Ranks, folder: Path, steps: int, **knobs):
    """PPO in a folder, up to so many steps."""
    run = Run(folder, resume=True, checkpoint_every=2, progress=False, ranks=ranks)
    return train_ppo(ranks, run, steps=steps, **knobs)


def main(out: Path) -> None:
    warnings.filterwarnings("ignore", message=".*versions or threads differ")  # another number of ranks: meant
    ranks, found = join(), {}

    def compare(name: str, mine, train, **knobs) -> None:
        if ranks.first:  # what one process computes, one process computes
            found[name] = largest_difference(mine, train(ALONE, **knobs))

    for group_size in (1, 4):
        found[f"rollouts in groups of {group_size}"] = rollouts_differ(ranks, group_size)
    for name, (train, knobs) in CASES.items():
        for shard in ("ddp", "fsdp"):
            compare(f"{name}, {shard}", train(Ranks(ranks.rank, ranks.size, shard=shard), **knobs), train, **knobs)
    for name, wrong, train, knobs in mistakes(ranks):
        compare(f"mistake: {name}", wrong, train, **knobs)
    for shard in ("ddp", "fsdp"):
        place = Ranks(ranks.rank, ranks.size, shard=shard)
        weights, _ = resumed(place, out / f"alone_{shard}", 4)  # which one process took to step 2
        compare(f"resumed by two, {shard}", (weights, []), lambda *_: (train_ppo(ALONE, steps=4)[0], []))
        resumed(place, out / f"two_{shard}", 2)  # which one process takes to step 4
        found[f"shards in the checkpoint, {shard}"] = float(
            len(list((checkpoints(out / f"two_{shard}" / "checkpoints")[-1]).glob("shards/*.safetensors")))
        )
    if ranks.first:
        (out / "found.json").write_text(json.dumps(found, indent=1))
    ranks.leave()
    exit_now(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
