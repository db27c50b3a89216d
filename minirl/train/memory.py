"""A minibatch in parts that fit into memory, with the gradient of the whole.

The well-known mistake is to average the averages: a token mean over each part, and then the mean of these, weighs a token
of a short part more than one of a long part. Every reducer here is linear in its table, reduce(x, mask) = sum(w * x), and
the weights w of the whole minibatch are known before any model has run. A part takes its own rows of w, and the gradients
of the parts add up to the gradient of the whole.

    for rows in torch.randperm(len(rollout)).split(minibatch):
        optimizer.zero_grad()
        for micro, part in micro_batches(rollout, rows, size):
            reduce = share(token_mean, mask, rows, micro)
            ...
            loss.backward()
        follow_gradient(optimizer, ...)
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from minirl.masking import blank
from minirl.ranks import ALONE, Ranks
from minirl.types import Bool, Int, PreferenceBatch, Reducer, Rollout, Stats, Tensor


def micro_batches(
    rollout: Rollout,
    rows: Int[Tensor, " M"],
    size: int | None,
    *,
    counted: Bool[Tensor, "B T"] | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[Tensor, Rollout]]:
    """(row numbers, those rows) of at most `size` rows each, responses of one length together and without padding that
    they do not need. None: all the rows as they are. A part without a token that is `counted` (None: rollout.mask) is left
    out. Of several `ranks`, each gets the parts of its own rows."""
    if size is None and ranks.size == 1:
        yield rows, rollout[rows]
        return
    counted = rollout.mask if counted is None else counted
    # the longest first: if memory runs out, it does so at once; and dealt like cards, so that ranks have equally much to do
    order = rollout.mask[rows].sum(1).argsort(descending=True, stable=True)
    mine = rows[order.to(rows.device)][ranks.rank :: ranks.size]
    parts = [micro for micro in mine.split(size or len(rows)) if counted[micro].any()]
    for micro in ranks.in_step(parts):
        yield micro, tight(rollout[micro])


def pair_micro_batches(
    pairs: PreferenceBatch, rows: Int[Tensor, " M"], size: int | None, *, ranks: Ranks = ALONE
) -> Iterator[tuple[Tensor, PreferenceBatch]]:
    """The same for pairs: (row numbers, those pairs), the longest first."""
    if size is None and ranks.size == 1:
        yield rows, pairs[rows]
        return
    longest = torch.maximum(pairs.chosen_mask.sum(1), pairs.rejected_mask.sum(1))
    order = longest[rows].argsort(descending=True, stable=True)
    mine = rows[order.to(rows.device)][ranks.rank :: ranks.size]
    for micro in ranks.in_step([micro for micro in mine.split(size or len(rows)) if len(micro)]):
        part = pairs[micro]
        before, width = int(part.starts.min()), max(int(longest[micro].max()), 1)
        end = part.chosen.shape[1] - part.chosen_mask.shape[1] + width
        yield (
            micro,
            PreferenceBatch(
                chosen=part.chosen[:, before:end],
                rejected=part.rejected[:, before:end],
                chosen_mask=part.chosen_mask[:, :width],
                rejected_mask=part.rejected_mask[:, :width],
                starts=part.starts - before,
            ),
        )


@torch.no_grad()
def in_parts(
    read: Callable[[Rollout | PreferenceBatch], tuple[Tensor, ...]],
    batch: Rollout | PreferenceBatch,
    size: int | None,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, ...]:
    """read(batch), tables of one row a response or pair, made of `size` rows at a time and without gradient. None: all at
    once. Several `ranks` read a part each, and all get the whole."""
    if ranks.size > 1:
        return _in_parts_of_ranks(read, batch, size, ranks)
    if size is None:
        return read(batch)
    parts = [read(batch[i : i + size]) for i in range(0, len(batch), size)]
    return tuple(torch.cat(tables) for tables in zip(*parts, strict=True))


def _in_parts_of_ranks(
    read: Callable, batch: Rollout | PreferenceBatch, size: int | None, ranks: Ranks
) -> tuple[Tensor, ...]:
    """Equally many rows for every rank, since all of them read a sharded model at once: the last row is read more often."""
    n, each = len(batch), -(-len(batch) // ranks.size)
    rows = torch.arange(ranks.rank * each, (ranks.rank + 1) * each, device=batch.starts.device).clamp(max=n - 1)
    tables = in_parts(read, batch[rows], size)
    return tuple(torch.cat(ranks.every(table))[:n] for table in tables)


def tight(rollout: Rollout) -> Rollout:
    """Without the columns that are padding in every row, before the prompts and after the responses."""
    before = int(rollout.starts.min())
    longest = max(int(rollout.mask.any(0).nonzero().max()) + 1, 1) if rollout.mask.any() else 1
    end = rollout.tokens.shape[1] - rollout.mask.shape[1] + longest
    return replace(
        rollout,
        tokens=rollout.tokens[:, before:end],
        response=rollout.response[:, :longest],
        mask=rollout.mask[:, :longest],
        logprobs=rollout.logprobs[:, :longest],
        starts=rollout.starts - before,
    )


def share(reduce: Reducer, mask: Bool[Tensor, "B T"], rows: Int[Tensor, " M"], micro: Int[Tensor, " N"]) -> Reducer:
    """What a part adds to reduce(x[rows], mask[rows]): a reducer for x[micro]. `mask` is the whole rollout's; the table
    given to the result may have lost columns on its right."""
    if len(micro) == len(rows):
        return reduce
    mask, rows, micro = mask.cpu(), rows.cpu(), micro.cpu()
    zeros = torch.zeros(mask[rows].shape, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(reduce(zeros, mask[rows]), zeros)
    weights = torch.zeros(mask.shape, dtype=torch.float64)
    weights[rows] = slope

    def part_of_the_whole(x: Tensor, part_mask: Tensor) -> Tensor:
        x = blank(x, part_mask)
        return (x * weights[micro, : x.shape[1]].to(x)).sum()

    return part_of_the_whole


def added(log: Stats, stats: Stats, weight: Tensor | float = 1.0) -> Stats:
    """The log of a minibatch with the numbers of one more part: a share of a sum (weight 1), or a mean over this share of
    the tokens."""
    return log | {name: log.get(name, 0.0) + weight * value.detach() for name, value in stats.items()}
