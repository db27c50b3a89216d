"""Sampling responses: prompts in, a Rollout out.

A response's log-probabilities are those of the distribution it was drawn from, after temperature and top-p: the policy
gradient divides by exactly these. Three things make it quick, and change nothing else: keys and values are kept, a prompt is
read once however many responses it gets, and a token costs one uniform number (its place on the cumulative distribution)
and not a vocabulary of noise.
"""

import torch

from minirl.attention import KVCache
from minirl.decoder import Decoder
from minirl.model import PolicyWithValue, Transformer
from minirl.ranks import ALONE, Ranks
from minirl.sampling import Choose
from minirl.sampling import inverse_cdf as inverse_cdf  # where a reader looks for them
from minirl.sampling import nucleus as nucleus
from minirl.types import Int, Rollout, Tensor, check_knob, check_size, is_whole, shortened, upcast


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
    ranks: Ranks = ALONE,
) -> Rollout:
    """`group_size` sampled responses to each prompt, group by group; each ends with `eos` or after max_new_tokens.

    `generator` supplies the randomness, on any device (a CPU generator serves a model on a GPU); None is PyTorch's global
    one on the CPU. T, the width of the response, is the length of the longest one. After its end a row holds `eos`.
    One of several `ranks` answers its share of the prompts, with the noise these prompts have on one machine.

    ValueError: no prompts, an empty prompt, a token or eos outside the vocabulary, a knob out of range, or a prompt that
    leaves no room for max_new_tokens in the model's max_length.
    """
    check_knob("temperature", temperature, 0, open_low=True)
    check_knob("top_p", top_p, 0, 1, open_low=True)
    check_size("max_new_tokens", max_new_tokens)
    check_size("group_size", group_size)
    policy = model.policy if isinstance(model, PolicyWithValue) else model
    check_prompts(policy, prompts, max_new_tokens, eos)  # before noise is drawn for what has no room
    # All the noise at once: how much of the generator is used does not depend on when the rows end.
    source = "cpu" if generator is None else generator.device
    noise = torch.rand(max_new_tokens, len(prompts) * group_size, generator=generator, device=source)
    mine = ranks.part(len(prompts))
    rows = slice(mine.start * group_size, mine.stop * group_size)
    noise = noise[:, rows].to(policy.embed.weight.device)

    def choose(logits: Tensor, step: int | Tensor) -> tuple[Tensor, Tensor]:
        uniform = noise[step] if isinstance(step, int) else noise.index_select(0, step).squeeze(0)
        return policy.ops.sample(logits, uniform, temperature=temperature, top_p=top_p)

    return _respond(model, prompts[mine], max_new_tokens, group_size, eos, choose)


def generate_greedy(
    model: Transformer | PolicyWithValue, prompts: list[list[int]], *, max_new_tokens: int, eos: int | None = None
) -> Rollout:
    """The most probable token at every step; log-probabilities are those of the distribution at temperature 1."""
    check_size("max_new_tokens", max_new_tokens)

    def choose(logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        logprobs, tokens = upcast(logits).log_softmax(-1).max(-1)
        return tokens, logprobs

    return _respond(model, prompts, max_new_tokens, 1, eos, choose)


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
    # Inference mode is no_grad without the bookkeeping of views, which is a sixth of the time of a small model. What is
    # computed from these tensors after the block, if only a copy, is ordinary again and may meet autograd.
    with torch.inference_mode():
        cache = KVCache(policy.config, len(prompts), prompt.shape[1] + max_new_tokens, weight.device, weight.dtype)
        logits = policy.head(policy.hidden(prompt, starts=starts, cache=cache, at=slice(-1, None))[:, -1])
        if group_size > 1:
            cache, logits = cache.repeat(group_size), logits.repeat_interleave(group_size, 0)
        padding = starts.repeat_interleave(group_size) if len(set(map(len, prompts))) > 1 else None
        decoder = Decoder(policy, cache, padding)
        response, logprobs, mask, running = policy.ops.respond(decoder, logits, choose, steps=max_new_tokens, eos=eos)
    length = int(mask.sum(1).max())  # steps taken after the last row had ended are dropped
    response, logprobs, mask = (table[:, :length].clone() for table in (response, logprobs, mask))
    return Rollout(
        tokens=torch.cat([prompt.repeat_interleave(group_size, 0), response], 1),
        response=response,
        mask=mask,
        logprobs=logprobs,
        finished=~running,
        prompt_index=torch.arange(len(prompts), device=weight.device).repeat_interleave(group_size),
        starts=starts.repeat_interleave(group_size),
    )


def _left_padded(
    policy: Transformer, prompts: list[list[int]], max_new_tokens: int, eos: int | None
) -> tuple[Int[Tensor, "N P"], Int[Tensor, " N"]]:
    """The prompts as one tensor with 0 on the left of the shorter ones, and how many zeros each row has."""
    check_prompts(policy, prompts, max_new_tokens, eos)
    width = max(map(len, prompts))
    rows = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    starts = torch.tensor([width - len(prompt) for prompt in prompts])
    device = policy.embed.weight.device
    return torch.tensor(rows).to(device), starts.to(device)


def check_prompts(policy: Transformer, prompts: list[list[int]], max_new_tokens: int, eos: int | None) -> None:
    vocab_size, max_length = policy.config.vocab_size, policy.config.max_length
    if not isinstance(prompts, list | tuple):
        raise ValueError(f"prompts: wanted a list of lists of tokens, got {type(prompts).__name__}")
    if not prompts:
        raise ValueError("prompts: wanted at least one prompt, got an empty list")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, list | tuple) or not all(is_whole(token) for token in prompt):
            raise ValueError(f"prompts: wanted whole numbers in prompt {i}, got {shortened(prompt)}")
        if len(prompt) == 0:
            raise ValueError(f"prompts: prompt {i} is empty; wanted at least one token (a BOS token will do)")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise ValueError(f"prompts: prompt {i} has a token outside the vocabulary [0, {vocab_size})")
    if eos is not None and not (isinstance(eos, int) and 0 <= eos < vocab_size):
        raise ValueError(f"eos: wanted a token in [0, {vocab_size}), got {shortened(eos)}")
    width = max(map(len, prompts))
    if width + max_new_tokens > max_length:
        wanted = f"{width} prompt tokens and max_new_tokens={max_new_tokens}"
        raise ValueError(f"prompts: {wanted} do not fit into the model's max_length {max_length}")
