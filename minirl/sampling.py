"""From logits to the next token, by one uniform number a row and its place on the cumulative distribution; and from a token
to the next, until the end."""

from collections.abc import Callable

import torch

from minirl.types import Bool, Float, Int, Tensor, check_knob, upcast

Choose = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # (logits (B, V), step) -> (tokens (B,), logprobs (B,))


def sample(
    logits: Float[Tensor, "B V"], uniform: Float[Tensor, " B"], *, temperature: float = 1.0, top_p: float = 1.0
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """(tokens, logprobs): a token of softmax(logits / temperature), cut to its nucleus, and log of its probability there.

    `uniform` in [0, 1) decides: the same number gives the same token.
    """
    check_knob("temperature", temperature, 0, open_low=True)
    probs = nucleus((upcast(logits) / temperature).softmax(-1), top_p)
    tokens = inverse_cdf(probs, uniform)
    return tokens, probs.gather(1, tokens[:, None]).squeeze(1).log()


def nucleus(probs: Float[Tensor, "B V"], top_p: float) -> Float[Tensor, "B V"]:
    """The smallest set of most probable tokens that holds at least `top_p`, renormalised; 0 elsewhere (Holtzman et al.
    2019, eq. 2-3). The most probable token is always in it."""
    check_knob("top_p", top_p, 0, 1, open_low=True)
    if top_p == 1:
        return probs
    ordered, order = probs.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered  # what more probable tokens hold already
    kept = torch.zeros_like(probs).scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))
    return kept / kept.sum(-1, keepdim=True)


def inverse_cdf(probs: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The first token whose cumulative probability exceeds `uniform` in [0, 1): token a is drawn with probs[a].

    "Exceeds" and not "reaches": at 0, and where the sum stands still, a token of probability 0 is passed over. The
    number is scaled by the sum itself, which rounding leaves a little off 1.
    """
    cumulative = probs.cumsum(-1)
    tokens = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True).squeeze(1)
    tokens = tokens.clamp(max=probs.shape[1] - 1)
    possible = probs.gather(1, tokens[:, None]).squeeze(1) > 0
    if probs.device.type == "cpu" and possible.all():
        return tokens
    # A parallel sum can step by rounding alone, on a token that has no probability.
    return torch.where(possible, tokens, probs.argmax(-1))


def respond(
    decoder, logits: Float[Tensor, "B V"], choose: Choose, *, steps: int, eos: int | None
) -> tuple[Int[Tensor, "B T"], Float[Tensor, "B T"], Bool[Tensor, "B T"], Bool[Tensor, " B"]]:
    """The loop of sampling: choose a token for every row, read it, and again, until `steps` or until all rows have ended.

    `logits` follow the prompts, `decoder.step(tokens)` gives those that follow. Returns (tokens, logprobs, counted, still
    running); what follows a row's `eos` holds `eos` and does not count.
    """
    running = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    fill = torch.tensor(0 if eos is None else eos, device=logits.device)
    columns = []  # (tokens, logprobs, counted), each (B,)
    for step in range(steps):
        if step > 0:
            logits = decoder.step(tokens)
        tokens, logprobs = choose(logits, step)
        tokens = torch.where(running, tokens, fill)
        columns.append((tokens, logprobs.masked_fill(~running, 0.0), running))
        if eos is not None:
            running = running & (tokens != eos)
            if asks_now(logits.device, step) and not running.any():
                break
    return *(torch.stack(column, 1) for column in zip(*columns, strict=True)), running


def asks_now(device: torch.device, step: int) -> bool:
    """Whether to ask if all rows have ended: the answer makes an accelerator wait, so there it is asked now and then."""
    return device.type == "cpu" or step % 16 == 15
