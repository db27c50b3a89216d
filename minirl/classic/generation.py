"""`generate` as those programs call it: tensors in, prompt and response out, with the usual knobs."""

import torch

from minirl.classic.notes import Notes
from minirl.generate import _respond as respond
from minirl.generate import inverse_cdf, nucleus
from minirl.model import Transformer
from minirl.types import Int, Tensor, check_knob, check_size, upcast

HARMLESS = ("use_cache", "output_scores", "output_attentions", "output_hidden_states", "token_type_ids")
WITHOUT = {"num_beams": (1,), "return_dict_in_generate": (False,), "repetition_penalty": (1,), "penalty_alpha": (0,)}


def continued(
    policy: Transformer,
    input_ids: Int[Tensor, "N P"],
    attention_mask: Tensor | None,
    *,
    notes: Notes,
    do_sample: bool,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    min_new_tokens: int = 0,
    min_length: int = -1,
    temperature: float = 1.0,
    top_k: float = 0,
    top_p: float = 1.0,
    num_return_sequences: int = 1,
    eos_token_id: int | list[int] | None = None,
    pad_token_id: int | None = None,
    generator: torch.Generator | None = None,
    **others,
) -> tuple[Int[Tensor, "B S"], list[list[int]]]:
    """(prompt and response as a tensor, the same as rows without any padding).

    After its end token a row holds pad_token_id. Lengths as in transformers: max_length and min_length count the prompt,
    max_new_tokens and min_new_tokens do not; 20 new tokens if neither is given. `top_k` 0: all tokens. An eos_token_id
    outside the vocabulary never comes, and answers then run to the end. ValueError: a knob out of range or one that would
    change the answers and is not there (beams, penalties).
    """
    for name, plain in WITHOUT.items():
        if others.pop(name, plain[0]) not in plain:
            raise ValueError(f"{name}: wanted {plain[0]}, generation has no such thing here")
    unknown = sorted(name for name in others if name not in HARMLESS)
    if unknown:
        notes(", ".join(unknown), "of no effect in generate()")
    check_knob("top_k", top_k, -1)
    check_knob("top_p", top_p, 0, 1, open_low=True)
    check_knob("temperature", temperature, 0, open_low=True)
    eos = end_token(eos_token_id, policy.config.vocab_size)
    if attention_mask is None and pad_token_id not in (None, eos) and len(input_ids) > 1:
        attention_mask = (input_ids != pad_token_id).long()
    keep = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    prompts = [row[kept.bool()].tolist() for row, kept in zip(input_ids, keep, strict=True)]
    longest = max(map(len, prompts))
    room = policy.config.max_length - longest
    if room < 1:
        raise ValueError(
            f"input_ids: {longest} tokens leave no room in the model's {policy.config.max_length} positions"
        )
    length = new_tokens(max_new_tokens, max_length, input_ids.shape[1], room, notes)
    least = max(min_new_tokens, min_length - input_ids.shape[1])
    # All the noise at once, as minirl.generate draws it: the same seed gives the same answers there and here.
    source = "cpu" if generator is None else generator.device
    noise = torch.rand(length, len(prompts) * num_return_sequences, generator=generator, device=source)
    noise = noise.to(input_ids.device)

    def choose(logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        logits = upcast(logits) / temperature
        if eos is not None and step < least:
            logits[:, eos] = -torch.inf
        if top_k >= 1:
            kth = logits.topk(min(int(top_k), logits.shape[1])).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        probs = nucleus(logits.softmax(-1), top_p)
        tokens = inverse_cdf(probs, noise[step]) if do_sample else logits.argmax(-1)
        return tokens, probs.gather(1, tokens[:, None]).squeeze(1).log()

    rollout = respond(policy, prompts, length, num_return_sequences, eos, choose)
    pad = next(token for token in (pad_token_id, eos, 0) if token is not None)
    response = rollout.response.masked_fill(~rollout.mask, pad)
    tokens = torch.cat([input_ids.repeat_interleave(num_return_sequences, 0), response], 1)
    counted = [row[:n] for row, n in zip(response.tolist(), rollout.mask.sum(1).tolist(), strict=True)]
    return tokens, [prompts[i] + row for i, row in zip(rollout.prompt_index.tolist(), counted, strict=True)]


def end_token(eos_token_id, vocab_size: int) -> int | None:
    if isinstance(eos_token_id, list | tuple):
        if len(eos_token_id) != 1:
            raise ValueError(f"eos_token_id: wanted one token, got {eos_token_id}")
        eos_token_id = eos_token_id[0]
    return eos_token_id if eos_token_id is not None and 0 <= eos_token_id < vocab_size else None


def new_tokens(max_new_tokens, max_length, width: int, room: int, notes: Notes) -> int:
    """How many tokens to write at most. Cut, and said, where the model can read no further."""
    if max_new_tokens is None and max_length is not None and max_length <= width:
        raise ValueError(f"max_length: counts the prompt, which has {width} tokens; wanted more, got {max_length}")
    wanted = max_new_tokens if max_new_tokens is not None else 20 if max_length is None else max_length - width
    wanted = int(wanted)
    check_size("max_new_tokens", wanted)
    if wanted > room:
        notes("max_new_tokens", f"{wanted} cut to {room}, all that the model's positions leave")
    return min(wanted, room)
