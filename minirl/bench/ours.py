"""Our side of the workloads. Each gives (answers, units): what it computes, to be compared, and the work itself.

`answers()` also holds our own shortcuts against the long way, and raises where they differ: prompts read once for a group,
keys and values kept while sampling. `units(pause)` works for ever and calls pause() after each unit.

bfloat16 is autocast around the loop. Its cache of converted weights has to be off where the weights change: it lives as
long as the context, and the loop would go on with the weights of its first step.
"""

import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from minirl import __version__
from minirl.generate import generate, generate_greedy
from minirl.losses.policy import grpo_loss
from minirl.losses.preference import bradley_terry_loss, dpo_loss
from minirl.model import PolicyWithValue, Transformer
from minirl.pretrained import load_pretrained, load_reward_model
from minirl.rollout import model_scorer, response_logprobs, rule_scorer
from minirl.run import Run
from minirl.tokenizer import Tokenizer
from minirl.train import dpo, grpo, ppo, reward_model
from minirl.train.optimizer import adamw, update
from minirl.types import PreferenceBatch, Tensor

EOS, LR = 2, 1e-4
Pause = Callable[[], None]
Sides = tuple[Callable[[], dict], Callable[[Pause], None]]
TOLERANCE = 1e-4


class Paced(Run):
    """A Run that pauses after each step, and keeps no files."""

    def __init__(self, pause: Pause):
        super().__init__(progress=False)
        self.pause = pause

    def record(self, step, stats):
        super().record(step, stats)
        self.pause()


def versions() -> dict:
    return {"minirl": __version__, "torch": torch.__version__, "python": platform.python_version()}


def autocast(spec: dict, *, weights_change: bool = True):
    return torch.autocast("cpu", torch.bfloat16, spec["dtype"] == "bf16", cache_enabled=not weights_change)


def sampling(folder: Path, spec: dict, *, new: int, group: int) -> Sides:
    model, _ = load_pretrained(folder / "policy")
    prompts = load_file(folder / "rows.safetensors")["prompts"][: spec["rows"] // group].tolist()
    knobs = {"max_new_tokens": new, "group_size": group, "generator": torch.Generator().manual_seed(0)}

    def answers() -> dict:
        rollout = generate(model, prompts, **knobs)
        with torch.no_grad():
            plain, _ = response_logprobs(model, rollout.tokens, rollout.starts, new)
        agree("sampling with and without keys and values kept", rollout.logprobs, plain)
        greedy = generate_greedy(model, prompts[:8], max_new_tokens=16)
        return logits(model, folder) | {"greedy tokens": greedy.response.tolist()}

    def units(pause: Pause) -> None:
        with autocast(spec, weights_change=False):
            while True:
                pause()
                generate(model, prompts, **knobs)

    return answers, units


def grpo_step(folder: Path, spec: dict) -> Sides:
    model, tokenizer = load_pretrained(folder / "policy")
    rows = load_file(folder / "rows.safetensors")

    def answers() -> dict:
        advantages = torch.linspace(-2, 2, spec["rows"])
        tokens, index = compared(rows, spec)
        found = {}
        for name, prompt_index in (("long", None), ("shared", index)):
            logprobs, _ = response_logprobs(
                model, tokens, torch.zeros_like(index), spec["new"], prompt_index=prompt_index
            )
            mask = torch.ones_like(logprobs, dtype=torch.bool)
            loss, _ = grpo_loss(logprobs, logprobs.detach(), None, advantages, mask, kl_coef=0.0)
            found[name] = {"log-probs": logprobs.tolist()} | gradient(model, model, loss)
        for name, numbers in found["long"].items():
            agree(f"{name} with prompts shared and without", *map(torch.tensor, (found["shared"][name], numbers)))
        return logits(model, folder) | found["shared"]

    def units(pause: Pause) -> None:
        config = grpo.GRPOConfig(
            steps=spec["units"],
            prompts=spec["rows"] // spec["group"],
            group_size=spec["group"],
            minibatch=spec["rows"],
            max_new_tokens=spec["new"],
            kl_coef=0.0,
            lr=LR,
        )
        score = rule_scorer(partial(even_share, length=spec["new"]), tokenizer)
        with autocast(spec):
            grpo.train(model, None, tokenizer, texts(rows["prompts"], tokenizer), score, config, Paced(pause))

    return answers, units


def even_share(prompts: list[str], responses: list[str], *, length: int) -> list[float]:
    """The rule: the share of words with an even number."""
    return [sum(int(word[1:]) % 2 == 0 for word in response.split()) / length for response in responses]


def dpo_step(folder: Path, spec: dict, *, live: bool) -> Sides:
    policy, _ = load_pretrained(folder / "policy")
    reference, _ = load_pretrained(folder / "reference")
    rows = load_file(folder / "rows.safetensors")
    data = preferences(rows["pair_prompts"], rows["chosen"], rows["rejected"])
    config = dpo.DPOConfig(steps=spec["units"], pairs=spec["pairs"], beta=0.1, lr=LR)

    def loss_of(pairs: PreferenceBatch) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            ref_chosen, ref_rejected = dpo.pair_logprobs(reference, pairs)
        chosen, rejected = dpo.pair_logprobs(policy, pairs)
        return dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=config.beta)[0], chosen, rejected

    def answers() -> dict:
        pairs = data[: spec["pairs"]]
        loss, chosen, rejected = loss_of(pairs)
        tokens, zeros = torch.cat([pairs.chosen, pairs.rejected]), pairs.starts.repeat(2)
        with torch.no_grad():
            plain, _ = response_logprobs(policy, tokens, zeros, pairs.chosen_mask.shape[1])
        agree("log-probs with prompts shared and without", torch.cat([chosen, rejected]), plain.sum(1))
        return logits(policy, folder) | {"loss": loss.item()} | gradient(policy, policy, loss)

    def units(pause: Pause) -> None:
        with autocast(spec):
            if not live:
                dpo.train(policy, reference, data, config, Paced(pause))
                return
            optimizer = adamw(policy)
            for step in range(spec["units"]):
                rows = slice(step * spec["pairs"], (step + 1) * spec["pairs"])
                update(optimizer, loss_of(data[rows])[0], step=step, lr=LR, max_grad_norm=1.0)
                pause()

    return answers, units


def reward_step(folder: Path, spec: dict) -> Sides:
    judge, _ = load_reward_model(folder / "judge")
    rows = load_file(folder / "rows.safetensors")
    data = preferences(rows["judged_chosen"][:, :0], rows["judged_chosen"], rows["judged_rejected"])

    def answers() -> dict:
        chosen, rejected = reward_model.pair_scores(judge, data[: spec["pairs"]])
        loss, _ = bradley_terry_loss(chosen, rejected)
        found = {"scores": torch.cat([chosen, rejected]).tolist(), "loss": loss.item()}
        return found | gradient(judge, judge.trunk, loss, head=False)

    def units(pause: Pause) -> None:
        config = reward_model.RewardModelConfig(steps=spec["units"], pairs=spec["pairs"], lr=LR)
        with autocast(spec):
            reward_model.train(judge, data, config, Paced(pause))

    return answers, units


def ppo_step(folder: Path, spec: dict, *, critic: bool) -> Sides:
    policy, tokenizer = load_pretrained(folder / "policy")
    reference, _ = load_pretrained(folder / "reference")
    judge, _ = load_reward_model(folder / "judge")
    own = load_reward_model(folder / "critic")[0].trunk if critic else None
    rows = load_file(folder / "rows.safetensors")

    def answers() -> dict:
        tokens, index = compared(rows, spec)
        mask = torch.ones(len(tokens), spec["new"], dtype=torch.bool)
        with torch.no_grad():
            both = {
                name: response_logprobs(model, tokens, torch.zeros_like(index), spec["new"])[0].tolist()
                for name, model in (("log-probs", policy), ("reference log-probs", reference))
            }
            return logits(policy, folder) | both | {"scores": judge(tokens, mask).tolist()}

    def units(pause: Pause) -> None:
        config = ppo.PPOConfig(
            steps=spec["units"],
            batch=spec["rows"],
            minibatch=spec["rows"],
            epochs=4,
            max_new_tokens=spec["new"],
            kl_coef=0.05,
            lr=LR,
        )
        prompts = texts(rows["prompts"], tokenizer)
        with autocast(spec):
            ppo.train(
                PolicyWithValue(policy, own), reference, tokenizer, prompts, model_scorer(judge), config, Paced(pause)
            )

    return answers, units


def compared(rows: dict, spec: dict) -> tuple[Tensor, Tensor]:
    """Prompts and responses that both sides read, a prompt for each group: tokens and prompt_index."""
    index = torch.arange(spec["rows"]) // spec["group"]
    return torch.cat([rows["prompts"][index], rows["responses"]], 1), index


def logits(model: Transformer, folder: Path) -> dict:
    with torch.no_grad():
        return {"logits": model(load_file(folder / "rows.safetensors")["prompts"][:4]).tolist()}


def gradient(model: nn.Module, trunk: Transformer, loss: Tensor, *, head: bool = True) -> dict:
    """Norms of the gradient: of all weights, of the embedding and of the head."""
    model.zero_grad()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    parts = [norm, trunk.embed.weight.grad.norm(), *([trunk.head.weight.grad.norm()] if head else [])]
    model.zero_grad()
    return {"gradient norms": torch.stack(parts).tolist()}


def agree(what: str, one: Tensor, other: Tensor) -> None:
    gap = (one - other).abs().max() / other.abs().max().clamp(min=1e-6)
    if not gap < TOLERANCE:
        raise ValueError(f"{what}: our two ways differ by {gap:.2g} of the largest number")


def preferences(prompts: Tensor, chosen: Tensor, rejected: Tensor) -> PreferenceBatch:
    """Pairs of equal length, with the end token behind each response."""
    end = torch.full((len(chosen), 1), EOS)
    mask = torch.ones(len(chosen), chosen.shape[1] + 1, dtype=torch.bool)
    return PreferenceBatch(
        chosen=torch.cat([prompts, chosen, end], 1),
        rejected=torch.cat([prompts, rejected, end], 1),
        chosen_mask=mask,
        rejected_mask=mask,
        starts=torch.zeros(len(chosen), dtype=torch.long),
    )


def texts(rows: Tensor, tokenizer: Tokenizer) -> Callable:
    """The rows as texts, the next n at each call."""
    lines, taken = [tokenizer.decode(row) for row in rows], 0

    def prompts(n: int, generator: torch.Generator) -> list[str]:
        nonlocal taken
        taken += n
        return [lines[i % len(lines)] for i in range(taken - n, taken)]

    return prompts


WORKLOADS = {
    "generate": partial(sampling, new=32, group=1),
    "generate_64": partial(sampling, new=64, group=1),
    "generate_groups": partial(sampling, new=32, group=8),
    "generate_groups_64": partial(sampling, new=64, group=8),
    "grpo": grpo_step,
    "dpo": partial(dpo_step, live=True),
    "dpo_precomputed": partial(dpo_step, live=False),
    "reward_model": reward_step,
    "ppo": partial(ppo_step, critic=False),
    "ppo_critic": partial(ppo_step, critic=True),
}
