"""From prompts as text to rollouts with scores, and from texts to batches: what the training loops share before any mathematics.

A *scorer* judges responses: scorer(prompts, rollout) -> (B,), one prompt a row. Two kinds exist, a rule on text and a
reward model on tokens; both come out of the functions here, so that a loop never asks which one it has.
"""

import math
from collections.abc import Callable
from dataclasses import fields

import torch
import torch.nn.functional as F

from minirl.attention import SharedPrompt
from minirl.generate import generate
from minirl.kl import kl_exact
from minirl.logprobs import entropy, predicting
from minirl.masking import blank, masked_mean
from minirl.model import PolicyWithValue, RewardModel, Transformer
from minirl.ranks import ALONE, Ranks
from minirl.tokenizer import Tokenizer
from minirl.types import (
    Bool,
    Float,
    Int,
    PreferenceBatch,
    Rollout,
    Tensor,
    check_finite,
    check_knob,
    check_rows,
)

Scorer = Callable[[list[str], Rollout], Tensor]
Rule = Callable[[list[str], list[str]], "Tensor | list[float]"]
Prompts = Callable[[int, torch.Generator], list[str]]
Sample = Callable[..., tuple[list[str], Rollout]]  # roll_out, or another way to the same


def roll_out(
    model: Transformer | PolicyWithValue,
    tokenizer: Tokenizer,
    prompts: list[str],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    group_size: int = 1,
    generator: torch.Generator | None = None,
    ranks: Ranks = ALONE,
) -> tuple[list[str], Rollout]:
    """Sample group_size responses to each prompt, for training: the whole distribution, never its nucleus.

    Returns (prompts, rollout) with the prompts repeated to one a row; several `ranks` write a part each, and all get the
    whole. ValueError for top_p < 1.
    """
    check_whole_distribution(top_p)
    with ranks.whole(model):
        rollout = generate(
            model,
            [tokenizer.encode(prompt) for prompt in prompts],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            group_size=group_size,
            eos=tokenizer.eos_id,
            generator=generator,
            ranks=ranks,
        )
    rollout = gathered(rollout, ranks, len(prompts), tokenizer.eos_id)
    return [prompt for prompt in prompts for _ in range(group_size)], rollout


def gathered(rollout: Rollout, ranks: Ranks, prompts: int, eos: int | None) -> Rollout:
    """The rollouts of all ranks, over their shares of so many prompts, as one: what one machine would have written."""
    if ranks.size == 1:
        return rollout
    tables = {field.name: ranks.every(getattr(rollout, field.name)) for field in fields(Rollout)}
    parts = [
        Rollout(**{name: of_ranks[i] for name, of_ranks in tables.items()}) for i in range(min(ranks.size, prompts))
    ]
    return join(parts, fill=eos or 0)


def check_whole_distribution(top_p: float) -> None:
    if top_p != 1:
        raise ValueError(
            f"top_p: training wants 1.0, got {top_p}. A nucleus gives every other token probability 0, while the policy "
            f"that is trained does not: the ratio of new to old probabilities would compare two different "
            f"distributions. Lower the temperature instead, and use top_p when generating"
        )


def responses_text(rollout: Rollout, tokenizer: Tokenizer) -> list[str]:
    """The counted tokens of each row as text, without special tokens."""
    rows = zip(rollout.response.tolist(), rollout.mask.tolist(), strict=True)
    return [tokenizer.decode([token for token, counts in zip(*row, strict=True) if counts]) for row in rows]


def rule_scorer(rule: Rule, tokenizer: Tokenizer) -> Scorer:
    """A rule on text, rule(prompts, responses) -> one number a response, as a scorer."""

    def score(prompts: list[str], rollout: Rollout) -> Tensor:
        try:
            found = rule(prompts, responses_text(rollout, tokenizer))
        except ValueError:
            raise
        except Exception as error:  # somebody's own code
            raise ValueError(f"rule: it raised {type(error).__name__}: {error}") from error
        try:
            scores = torch.as_tensor(found, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"rule: wanted one number a response, got {found!r:.80}") from None
        if scores.shape != (len(rollout),):
            raise ValueError(f"rule: wanted one score a response, shape ({len(rollout)},), got {tuple(scores.shape)}")
        check_finite(scores=scores)
        return scores.to(rollout.tokens.device)

    return score


def model_scorer(reward_model: RewardModel, *, rows: int = 128) -> Scorer:
    """A reward model as a scorer, `rows` responses at a time."""

    @torch.no_grad()
    def score(prompts: list[str], rollout: Rollout) -> Tensor:
        parts = [
            reward_model(rollout.tokens[i : i + rows], rollout.mask[i : i + rows], starts=rollout.starts[i : i + rows])
            for i in range(0, len(rollout), rows)
        ]
        return torch.cat(parts)

    return score


def scorer_of_ranks(score: Scorer, ranks: Ranks, *, split: bool) -> Scorer:
    """The same scorer for several processes. `split`: each judges its share of the rows, as a reward model can; otherwise the
    first judges all of them, as a rule may want that looks at the whole batch, draws a number, or asks somebody."""
    if ranks.size == 1:
        return score

    def scored(prompts: list[str], rollout: Rollout) -> Tensor:
        if not split:
            scores = (
                score(prompts, rollout) if ranks.first else rollout.tokens.new_zeros(len(rollout), dtype=torch.float32)
            )
            return ranks.add(scores)
        mine = ranks.part(len(rollout))
        return torch.cat(ranks.every(score(prompts[mine], rollout[mine]))[: len(rollout)])

    return scored


def centred_scorer(scorer: Scorer, prompts: list[str], rollout: Rollout) -> Scorer:
    """score(x, y) - c, with c the scorer's mean over reference responses: all such scorers count from the same zero.

    Bradley-Terry fixes a score up to a constant, and each reward model of an ensemble ends with its own. Left in, the
    constants count as disagreement. The scale is left as it is: it is fixed, a difference of scores is a log-odds.
    """
    with torch.no_grad():
        scores = scorer(prompts, rollout)
    check_rows(rollout.tokens, scores=scores)
    check_finite(scores=scores)
    zero = scores.mean()

    def score(prompts: list[str], rollout: Rollout) -> Tensor:
        return scorer(prompts, rollout) - zero

    return score


def ensemble_scorer(scorers: list[Scorer], *, caution: float = 1.0) -> Scorer:
    """Mean minus `caution` standard deviations over several reward models: a lower confidence bound.

    Reward models that learned from the same labels agree where the labels were, and part where a policy goes to please
    one of them; the bound does not pay for that (Coste et al. 2024, who take off the variance instead). Give it reward
    models through `centred_scorer`, or their constants are taken for disagreement.
    """
    check_knob("caution", caution, 0)
    if len(scorers) < 2:
        raise ValueError(f"scorers: wanted at least two to disagree, got {len(scorers)}")

    def score(prompts: list[str], rollout: Rollout) -> Tensor:
        scores = torch.stack([scorer(prompts, rollout) for scorer in scorers])
        return scores.mean(0) - caution * scores.std(0)

    return score


def response_logits(
    model: Transformer,
    tokens: Int[Tensor, "B S"],
    starts: Int[Tensor, " B"],
    length: int,
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "B T V"]:
    """Logits that predict the last `length` tokens, divided by the sampling temperature. The head runs on these alone."""
    check_knob("temperature", temperature, 0, open_low=True)
    return model.head(model.hidden(tokens, starts=starts, at=predicting(length))) / temperature


def response_logprobs(
    model: Transformer,
    tokens: Int[Tensor, "B S"],
    starts: Int[Tensor, " B"],
    length: int,
    *,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
    prompt_index: Int[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """log pi of each of the last `length` tokens, and the entropy of the distribution it was drawn from, in nats.

    Rows of one `prompt_index` have the same prompt, and it is read once for all of them; None: every row its own.

    A table of all logits, (B, T, V), would be the largest tensor of a run: 8 responses of 1,024 tokens over a vocabulary of
    128,256 are 4 GB in float32, and as much again for each function on the way of the gradient. It is never held: see
    `minirl.ops.hidden_logprobs`.
    """
    # with several ranks the way through the model may not depend on a rank's own rows
    plain = prompt_index is None or model.recompute or hasattr(model, "unshard")
    if plain or len(prompt_index.unique()) == len(prompt_index):
        hidden = model.hidden(tokens, starts=starts, at=predicting(length))
    else:
        hidden = hidden_after_shared_prompts(model, tokens, starts, length, prompt_index)
    return logprobs_of_hidden(
        model, hidden, tokens[:, -length:], temperature=temperature, entropy_gradient=entropy_gradient
    )


def hidden_after_shared_prompts(
    model: Transformer,
    tokens: Int[Tensor, "B S"],
    starts: Int[Tensor, " B"],
    length: int,
    prompt_index: Int[Tensor, " B"],
) -> Float[Tensor, "B T D"]:
    """model.hidden(...) where the last `length` tokens are predicted, with every prompt read once: eight answers of 32
    tokens to a prompt of 16 are 264 positions, and not 384. Values and gradients are those of the plain way, to rounding."""
    prompts, rows = prompt_index.unique(return_inverse=True)
    first = torch.full_like(prompts, len(tokens)).scatter_reduce(
        0, rows, torch.arange(len(tokens), device=tokens.device), "amin"
    )
    shared = SharedPrompt(rows)
    ahead = shared.spread(model.hidden(tokens[first, :-length], starts=starts[first], cache=shared, at=slice(-1, None)))
    if length == 1:
        return ahead
    after = model.hidden(tokens[:, -length:-1], starts=starts, cache=shared)
    return torch.cat([ahead, after], 1)


def response_logprobs_and_values(
    model: PolicyWithValue,
    tokens: Int[Tensor, "B S"],
    starts: Int[Tensor, " B"],
    length: int,
    *,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """The same, with V(s_t) read at the positions that predict: (logprobs, entropies, values)."""
    hidden, values = model.hidden_and_values(tokens, starts=starts, at=predicting(length))
    both = logprobs_of_hidden(
        model.policy,
        hidden,
        tokens[:, -length:],
        temperature=temperature,
        entropy_gradient=entropy_gradient,
    )
    return *both, values


def logprobs_of_hidden(
    model: Transformer,
    hidden: Float[Tensor, "B T D"],
    tokens: Int[Tensor, "B T"],
    *,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """(logprobs, entropies) from what the head reads, by the model's own table of operations: see `minirl.ops`."""
    return model.ops.hidden_logprobs(
        hidden, model.head.weight, tokens, temperature=temperature, entropy_gradient=entropy_gradient
    )


def lay_out(
    prompts: list[list[int]], responses: list[list[int]], *, device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B T"], Int[Tensor, " B"]]:
    """Token lists as (tokens, mask, starts): prompts padded on the left, responses on the right, like a Rollout."""
    if len(prompts) != len(responses) or not prompts:
        raise ValueError(
            f"responses: wanted one a prompt, at least one, got {len(responses)} for {len(prompts)} prompts"
        )
    before, after = max(map(len, prompts)), max(map(len, responses))
    rows = [
        [0] * (before - len(prompt)) + prompt + response + [0] * (after - len(response))
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    lengths = torch.tensor([len(response) for response in responses])
    mask = torch.arange(after) < lengths.unsqueeze(1)
    starts = torch.tensor([before - len(prompt) for prompt in prompts])
    return torch.tensor(rows).to(device), mask.to(device), starts.to(device)


def encode_examples(
    tokenizer: Tokenizer, prompts: list[str], responses: list[str], *, device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B T"], Int[Tensor, " B"]]:
    """Written examples, with the end token after each response, as (tokens, mask, starts)."""
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    return lay_out(
        [tokenizer.encode(prompt) for prompt in prompts],
        [tokenizer.encode_continuation(response) + end for response in responses],
        device=device,
    )


def preference_pairs(rollout: Rollout, first_is_better: Bool[Tensor, " N"]) -> PreferenceBatch:
    """Pairs from a rollout with group_size 2: rows 2i and 2i+1 answer one prompt. The sampled tokens are kept as they are."""
    if len(rollout) != 2 * len(first_is_better):
        raise ValueError(f"first_is_better: wanted one a pair of rows, {len(rollout) // 2}, got {len(first_is_better)}")
    chosen = torch.arange(0, len(rollout), 2, device=rollout.tokens.device) + (~first_is_better).long()
    rejected = chosen ^ 1
    return PreferenceBatch(
        chosen=rollout.tokens[chosen],
        rejected=rollout.tokens[rejected],
        chosen_mask=rollout.mask[chosen],
        rejected_mask=rollout.mask[rejected],
        starts=rollout.starts[chosen],
    )


def join(rollouts: list[Rollout], *, fill: int = 0) -> Rollout:
    """Several rollouts as one: prompts padded further on the left, responses on the right, with `fill`. prompt_index
    counts on."""
    if not rollouts:
        raise ValueError("rollouts: wanted at least one, got none")
    before = max(r.tokens.shape[1] - r.response.shape[1] for r in rollouts)
    after = max(r.response.shape[1] for r in rollouts)
    parts, first = [], 0
    for r in rollouts:
        left = before - (r.tokens.shape[1] - r.response.shape[1])
        right = after - r.response.shape[1]
        parts.append(
            Rollout(
                tokens=F.pad(F.pad(r.tokens, (left, 0)), (0, right), value=fill),
                response=F.pad(r.response, (0, right), value=fill),
                mask=F.pad(r.mask, (0, right)),
                logprobs=F.pad(r.logprobs, (0, right)),
                finished=r.finished,
                prompt_index=r.prompt_index + first,
                starts=r.starts + left,
            )
        )
        first += int(r.prompt_index.max()) + 1
    return Rollout(
        **{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Rollout)}
    )


def best_of(rollout: Rollout, scores: Float[Tensor, " B"], group_size: int) -> Rollout:
    """The best-scored row of each group of consecutive rows, the first of equals: best-of-n sampling."""
    check_rows(rollout.tokens, scores=scores)
    check_finite(scores=scores)
    if group_size < 1 or len(scores) % group_size:
        raise ValueError(f"group_size: wanted a divisor of {len(scores)} rows, got {group_size}")
    best = scores.view(-1, group_size).argmax(1)
    return rollout[best + group_size * torch.arange(len(best), device=best.device)]


def best_of_kl_bound(n: int) -> float:
    """KL(best of n || sampler) is at most log n - (n - 1) / n nats, and strictly below it where answers can coincide."""
    check_knob("n", n, 1)
    return math.log(n) - (n - 1) / n


@torch.no_grad()
def sequence_kl(
    policy: Transformer, ref: Transformer, rollout: Rollout, *, temperature: float = 1.0, rows: int = 128
) -> Float[Tensor, " B"]:
    """KL(policy || ref) along each sampled response: the exact KL of every next-token distribution, summed over tokens.

    Over the policy's own samples at this temperature, its mean is unbiased for the KL of responses, less noisy than k1.
    """
    parts = []
    for i in range(0, len(rollout), rows):
        part = rollout[i : i + rows]
        length = part.response.shape[1]
        logits = response_logits(policy, part.tokens, part.starts, length, temperature=temperature)
        ref_logits = response_logits(ref, part.tokens, part.starts, length, temperature=temperature)
        parts.append(blank(kl_exact(logits, ref_logits), part.mask).sum(1))
    return torch.cat(parts)


@torch.no_grad()
def mean_entropy(policy: Transformer, rollout: Rollout, *, temperature: float = 1.0) -> Float[Tensor, ""]:
    """Mean next-token entropy over the counted tokens, in nats."""
    length = rollout.response.shape[1]
    logits = response_logits(policy, rollout.tokens, rollout.starts, length, temperature=temperature)
    return masked_mean(entropy(logits), rollout.mask)
