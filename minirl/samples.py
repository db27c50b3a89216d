"""A closer look at a few responses: which tokens the reward paid for and where the policy has moved, written beside a run.

The file holds a list of questions. To each of them every model answers with the same noise, so that two answers part only
where the models do:

    {"prompt": str, "responses": [{"model": str, "tokens": [str, ...], "kl": [float, ...] or null,
                                   "reward": [float, ...] or null, "score": float, "gold": float or null}, ...]}

`tokens` are pieces of text that join to the response; `kl` is null for the first model, which is the reference; `reward`
is null where the score is not a sum over tokens.
"""

from pathlib import Path

import torch

from minirl.checkpoint import write_json
from minirl.kl import kl_exact
from minirl.model import RewardModel, Transformer, summed
from minirl.rollout import Prompts, Scorer, response_logits, roll_out
from minirl.tokenizer import Tokenizer
from minirl.types import Bool, Float, Rollout, Tensor, check_dims, check_finite, check_shapes

SHOWN = 4  # prompts


def write_samples(
    path: Path,
    models: dict[str, Transformer],
    tokenizer: Tokenizer,
    prompts: Prompts,
    scorer: Scorer,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    judge: RewardModel | None = None,
    watch: Scorer | None = None,
    seed: int = 0,
) -> None:
    """Every model answers the same prompts; the first one is the reference. `judge`: the reward model behind the scorer,
    if there is one. `watch`: a score that is shown as gold."""
    (_, ref), *_ = models.items()
    answers = {}
    for name, model in models.items():
        generator = torch.Generator().manual_seed(seed + 30_000)  # not the noise that training or its pairs have seen
        texts, rollout = roll_out(
            model,
            tokenizer,
            prompts(SHOWN, generator),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            generator=generator,
        )
        scores = scorer(texts, rollout).tolist()
        golds = [None] * len(texts) if watch is None else watch(texts, rollout).tolist()
        kl = None if model is ref else token_kl(model, ref, rollout, temperature=temperature)
        rewards = token_rewards(judge, rollout) if judge is not None and judge.pool is summed else None
        answers[name] = [
            {
                "model": name,
                "tokens": pieces(rollout.response[row][rollout.mask[row]].tolist(), tokenizer),
                "kl": counted(kl, rollout.mask, row),
                "reward": counted(rewards, rollout.mask, row),
                "score": scores[row],
                "gold": golds[row],
            }
            for row in range(len(texts))
        ]
    write_json(
        path,
        [{"prompt": text, "responses": [answers[name][row] for name in models]} for row, text in enumerate(texts)],
    )


@torch.no_grad()
def token_kl(policy: Transformer, ref: Transformer, rollout: Rollout, *, temperature: float) -> Float[Tensor, "B T"]:
    """KL(policy || ref) of the distribution each token was drawn from: what `sequence_kl` adds up."""
    length = rollout.response.shape[1]
    logits, ref_logits = (
        response_logits(model, rollout.tokens, rollout.starts, length, temperature=temperature)
        for model in (policy, ref)
    )
    return kl_exact(logits, ref_logits)


@torch.no_grad()
def token_rewards(judge: RewardModel, rollout: Rollout) -> Float[Tensor, "B T"]:
    return judge.token_scores(rollout.tokens, rollout.mask, starts=rollout.starts)


def counted(x: Float[Tensor, "B T"] | None, mask: Bool[Tensor, "B T"], row: int) -> list[float] | None:
    return None if x is None else x[row][mask[row]].tolist()


def pieces(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    """The text that each token adds. A character of several tokens stands at the last of them; the end token, which adds
    nothing, goes by its name."""
    found, before = [], ""
    for n, token in enumerate(ids, start=1):
        text = tokenizer.decode(ids[:n])
        whole = not text.endswith("\ufffd") or n == len(ids)
        found.append(text[len(before) :] if whole else "")
        before = text if whole else before
        if token == tokenizer.eos_id:
            found[-1] = tokenizer.eos
    return found


def win_rate(first: Float[Tensor, " N"], second: Float[Tensor, " N"]) -> tuple[float, float]:
    """How often `second` has the higher score, ties counted half, and the standard error of that share over N >= 2 pairs."""
    check_dims(1, first=first)
    check_shapes(first=first, second=second)
    check_finite(first=first, second=second)
    if len(first) < 2:
        raise ValueError(f"first: wanted the scores of at least 2 pairs, got {len(first)}")
    wins = ((second - first).sign() + 1) / 2
    return float(wins.mean()), float(wins.std() / len(wins) ** 0.5)
