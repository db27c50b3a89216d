"""Sampling responses: prompts in, a Rollout out.

A response's log-probabilities are those of the distribution it was drawn from, after temperature and top-p: the policy
gradient divides by exactly these. Three things make it quick, and change nothing else: keys and values are kept, a prompt is
read once however many responses it gets, and a token costs one uniform number (its place on the cumulative distribution)
and not a vocabulary of noise.
"""

from collections.abc import Callable

import torch

from minirl.attention import KVCache
from minirl.decoder import Decoder
from minirl.model import PolicyWithValue, Transformer
from minirl.types import Float, Int, Rollout, Tensor, check_knob, check_size, upcast

Choose = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # (logits (B, V), step) -> (tokens (B,), logprobs (B,))


def generate(
    model: Transformer | PolicyWithValue,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    group_size: int = 1,
    eos: int | None = None,
    generator: torch.Generator | None = None,
) -> Rollout:
    """`group_size` sampled responses to each prompt, group by group; each ends with `eos` or after max_new_tokens.

    `generator` supplies the randomness, on any device (a CPU generator serves a model on a GPU); None is PyTorch's global
    one on the CPU. T, the width of the response, is the length of the longest one. After its end a row holds `eos`.

    ValueError: no prompts, an empty prompt, a token or eos outside the vocabulary, a knob out of range, or a prompt that
    leaves no room for max_new_tokens in the model's max_length.
    """
    check_knob("temperature", temperature, 0, open_low=True)
    check_knob("top_p", top_p, 0, 1, open_low=True)
    check_size("max_new_tokens", max_new_tokens)
    check_size("group_size", group_size)
    # All the noise at once: how much of the generator is used does not depend on when the rows end.
    source = "cpu" if generator is None else generator.device
    noise = torch.rand(max_new_tokens, len(prompts) * group_size, generator=generator, device=source)
    noise = noise.to(next(model.parameters()).device)

    def choose(logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        probs = nucleus((upcast(logits) / temperature).softmax(-1), top_p)
        tokens = inverse_cdf(probs, noise[step])
        return tokens, probs.gather(1, tokens[:, None]).squeeze(1).log()

    return _respond(model, prompts, max_new_tokens, group_size, eos, choose)


def generate_greedy(
    model: Transformer | PolicyWithValue, prompts: list[list[int]], *, max_new_tokens: int, eos: int | None = None
) -> Rollout:
    """The most probable token at every step; log-probabilities are those of the distribution at temperature 1."""
    check_size("max_new_tokens", max_new_tokens)

    def choose(logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        logprobs, tokens = upcast(logits).log_softmax(-1).max(-1)
        return tokens, logprobs

    return _respond(model, prompts, max_new_tokens, 1, eos, choose)


def nucleus(probs: Float[Tensor, "B V"], top_p: float) -> Float[Tensor, "B V"]:
    """The smallest set of most probable tokens that holds at least `top_p`, renormalised; 0 elsewhere (Holtzman et al.
    2019, eq. 2-3). The most probable token is always in it."""
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


def _respond(
    model: Transformer | PolicyWithValue,
    prompts: list[list[int]],
    max_new_tokens: int,
    group_size: int,
    eos: int | None,
    choose: Choose,
) -> Rollout:
    policy = model.policy if isinstance(model, PolicyWithValue) else model
    weight = policy.embed.weight
    prompt, starts = _left_padded(policy, prompts, max_new_tokens, eos)
    fill = torch.tensor(0 if eos is None else eos, device=weight.device)
    columns = []  # of the response: (tokens, logprobs, counted), each (B,)

    # Inference mode is no_grad without the bookkeeping of views, which is a sixth of the time of a small model. What is
    # computed from these tensors after the block is ordinary again and may meet autograd.
    with torch.inference_mode():
        cache = KVCache(policy.config, len(prompts), prompt.shape[1] + max_new_tokens, weight.device, weight.dtype)
        logits = policy.head(policy.hidden(prompt, starts=starts, cache=cache, at=slice(-1, None))[:, -1])
        if group_size > 1:
            cache, logits = cache.repeat(group_size), logits.repeat_interleave(group_size, 0)
        padding = starts.repeat_interleave(group_size) if len(set(map(len, prompts))) > 1 else None
        decoder = Decoder(policy, cache, padding)
        running = torch.ones(len(logits), dtype=torch.bool, device=weight.device)
        for step in range(max_new_tokens):
            if step > 0:
                logits = decoder.step(tokens)
            tokens, logprobs = choose(logits, step)
            tokens = torch.where(running, tokens, fill)
            columns.append((tokens, logprobs.masked_fill(~running, 0.0), running))
            if eos is not None:
                running = running & (tokens != eos)
                if _asks_now(weight.device, step) and not running.any():
                    break

    response, logprobs, mask = (torch.stack(column, 1) for column in zip(*columns, strict=True))
    length = int(mask.sum(1).max())  # steps taken after the last row had ended are dropped
    response, logprobs, mask = response[:, :length], logprobs[:, :length], mask[:, :length]
    return Rollout(
        tokens=torch.cat([prompt.repeat_interleave(group_size, 0), response], 1),
        response=response,
        mask=mask,
        logprobs=logprobs,
        finished=~running,
        prompt_index=torch.arange(len(prompts), device=weight.device).repeat_interleave(group_size),
        starts=starts.repeat_interleave(group_size),
    )


def _asks_now(device: torch.device, step: int) -> bool:
    """Whether to ask if all rows have ended: the answer makes an accelerator wait, so there it is asked now and then."""
    return device.type == "cpu" or step % 16 == 15


def _left_padded(
    policy: Transformer, prompts: list[list[int]], max_new_tokens: int, eos: int | None
) -> tuple[Int[Tensor, "N P"], Int[Tensor, " N"]]:
    """The prompts as one tensor with 0 on the left of the shorter ones, and how many zeros each row has."""
    vocab_size, max_length = policy.config.vocab_size, policy.config.max_length
    if not prompts:
        raise ValueError("prompts: wanted at least one prompt, got an empty list")
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompts: prompt {i} is empty; wanted at least one token (a BOS token will do)")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise ValueError(f"prompts: prompt {i} has a token outside the vocabulary [0, {vocab_size})")
    if eos is not None and not 0 <= eos < vocab_size:
        raise ValueError(f"eos: wanted a token in [0, {vocab_size}), got {eos}")
    width = max(map(len, prompts))
    if width + max_new_tokens > max_length:
        wanted = f"{width} prompt tokens and max_new_tokens={max_new_tokens}"
        raise ValueError(f"prompts: {wanted} do not fit into the model's max_length {max_length}")
    rows = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    starts = torch.tensor([width - len(prompt) for prompt in prompts])
    device = policy.embed.weight.device
    return torch.tensor(rows).to(device), starts.to(device)
