"""The loop of sampling recorded once and replayed: a token costs the CPU one call, and never makes it wait for the GPU.

A step of a 1.5B model starts some 600 operations. Starting them takes the CPU several times as long as the GPU needs to run
them, so a GPU that is driven step by step mostly waits. A CUDA graph is such a step as one object. What it wants in return is
that nothing in it moves: the same tensors, of the same shapes, at the same addresses. So

- the position is a number on the GPU, which the step itself counts on;
- the keys are read up to a fixed place, and a mask hides those that are not there yet. Every KEYS_AT_ONCE tokens a new graph
  is recorded that reads further;
- whether all rows have ended, the one question that makes the CPU wait, is asked every sixteenth step.

Without a GPU (Triton's interpreter) the same step runs unrecorded. The twin: `minirl.sampling.respond`.
"""

from collections.abc import Callable

import torch

from minirl.decoder import Decoder
from minirl.sampling import Choose, asks_now
from minirl.types import Bool, Float, Int, Tensor

KEYS_AT_ONCE = 256


class Loop:
    """The state of the loop, all of it in tensors that stay where they are."""

    def __init__(self, decoder: Decoder, choose: Choose, rows: int, steps: int, eos: int | None):
        self.decoder, self.choose, self.eos = decoder, choose, eos
        device = decoder.counted.device
        self.position = torch.tensor([decoder.cache.length], device=device)
        self.step = torch.zeros(1, dtype=torch.long, device=device)
        self.tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self.running = torch.ones(rows, dtype=torch.bool, device=device)
        self.columns = (  # of the answer, a row a step: (tokens, logprobs, counted)
            torch.zeros(steps, rows, dtype=torch.long, device=device),
            torch.zeros(steps, rows, dtype=torch.promote_types(decoder.cache.keys.dtype, torch.float32), device=device),
            torch.zeros(steps, rows, dtype=torch.bool, device=device),
        )
        # Keys that are not there yet are hidden by a probability of 0, and 0 times a NaN is a NaN.
        for kept in (decoder.cache.keys, decoder.cache.values):
            kept[:, :, :, decoder.cache.length :].zero_()

    @property
    def moving(self) -> tuple[Tensor, ...]:
        return self.position, self.step, self.tokens, self.running

    def keep(self, logits: Float[Tensor, "B V"]) -> None:
        """Choose a token for every row and write it down."""
        tokens, logprobs = self.choose(logits, self.step)
        tokens = torch.where(self.running, tokens, 0 if self.eos is None else self.eos)
        logprobs = logprobs.masked_fill(~self.running, 0.0)
        for column, entry in zip(self.columns, (tokens, logprobs, self.running), strict=True):
            column.index_copy_(0, self.step, entry.to(column.dtype).unsqueeze(0))
        if self.eos is not None:
            self.running.logical_and_(tokens != self.eos)
        self.tokens.copy_(tokens)
        self.step.add_(1)

    def one_more(self, end: int) -> None:
        """Read the last tokens and choose the next, looking at the keys before `end`."""
        decoder = self.decoder
        mask = (decoder.counted[:end] <= self.position).unsqueeze(0)
        if decoder.starts is not None:
            mask = mask & (decoder.counted[:end] >= decoder.starts[:, None])
        logits = decoder.at(self.tokens, self.position, end, mask)
        self.position.add_(1)
        self.keep(logits)

    def recorded(self, end: int) -> Callable[[], None]:
        """`one_more(end)` as a CUDA graph's replay, or itself where there is no GPU."""
        if self.position.device.type != "cuda":
            return lambda: self.one_more(end)
        before = [x.clone() for x in self.moving]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # once for real: everything is compiled and chosen before it is recorded
            self.one_more(end)
        torch.cuda.current_stream().wait_stream(stream)
        for x, kept in zip(self.moving, before, strict=True):
            x.copy_(kept)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.one_more(end)
        return graph.replay


def respond(
    decoder: Decoder, logits: Float[Tensor, "B V"], choose: Choose, *, steps: int, eos: int | None
) -> tuple[Int[Tensor, "B T"], Float[Tensor, "B T"], Bool[Tensor, "B T"], Bool[Tensor, " B"]]:
    """`minirl.sampling.respond` with recorded steps. `choose` gets the step as a tensor (1,) and must not ask the GPU for
    a value."""
    loop, length = Loop(decoder, choose, len(logits), steps, eos), decoder.cache.length
    loop.keep(logits)
    done, end, replay = 1, 0, None
    while done < steps and not (eos is not None and asks_now(logits.device, done - 1) and not loop.running.any()):
        if length + done > end:
            end = min(-(-(length + done) // KEYS_AT_ONCE) * KEYS_AT_ONCE, decoder.cache.capacity)
            replay = loop.recorded(end)
        replay()
        done += 1
    decoder.cache.length = length + done - 1
    return *(column[:done].t() for column in loop.columns), loop.running
