"""A world small enough to be solved exactly: V tokens, perhaps an end token, at most L steps, every sequence enumerated.

A *state* is a prefix that may go on. A policy is one row of logits a state, (S, V): a table to play with, or what a
Transformer says at each of them (`policy_logits`). Everything here is a finite sum over the Y sequences, differentiable in
the logits, so that autograd gives exact gradients. Use float64 for the last digits.

    world = World(vocab_size=4, max_length=4)                   # token 0 ends a sequence
    logp = sequence_logprobs(world, logits)                     # (Y,): log pi(y) of every sequence
    J = objective(logp, ref_logp, scores, beta=0.5)             # J.backward() is the exact policy gradient
    best, value = optimum(ref_logp, scores, beta=0.5)           # pi* = pi_ref exp(r / beta) / Z, and beta log Z
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch

from minirl.logprobs import token_logprobs as logprobs_of_tokens
from minirl.masking import blank
from minirl.model import Transformer
from minirl.tokenizer import Tokenizer, character_tokenizer
from minirl.types import (
    Bool,
    Float,
    Int,
    Rollout,
    Tensor,
    check_dims,
    check_knob,
    check_mask,
    check_rows,
    check_shapes,
    check_size,
    check_tensors,
    check_together,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MOST_STEPS = 1000  # of a sequence
MOST_BATCHES = 100_000  # of which `expected_gradient` takes one gradient each


class World:
    """Every sequence over `vocab_size` tokens that ends with `eos` or, after `max_length` tokens, without it.

    eos=None: all sequences have max_length tokens. Attributes, for Y sequences and S states:

        tokens, mask (Y, L)     the sequences, padded with 0; the end token counts
        finished (Y,)           ended with eos, and not for want of room
        states (Y, L)           the state in which each token is chosen; 0 at padding
        depth (S,)              tokens before the choice; the states are sorted by it, and state 0 is the empty prefix
        child (S, V)            the state after the choice; -1 where the choice ends the sequence
        ends (S, V)             the sequence that the choice ends; -1 where it goes on
    """

    def __init__(self, vocab_size: int, max_length: int, *, eos: int | None = 0):
        check_size("vocab_size", vocab_size, 2)
        check_knob("vocab_size", vocab_size, 2, len(LETTERS))
        check_size("max_length", max_length)
        check_knob("max_length", max_length, 1, MOST_STEPS)
        if eos is not None:
            check_size("eos", eos, 0)
            check_knob("eos", eos, 0, vocab_size - 1)
        self.vocab_size, self.max_length, self.eos = vocab_size, max_length, eos
        going_on = [token for token in range(vocab_size) if token != eos]
        if (most := len(going_on) ** max_length) > 1_000_000:
            raise ValueError(f"max_length: {vocab_size} tokens and {max_length} steps are {most:,} sequences or more")
        self.prefixes = [p for length in range(max_length) for p in itertools.product(going_on, repeat=length)]
        state_of = {prefix: state for state, prefix in enumerate(self.prefixes)}
        self.depth = torch.tensor([len(prefix) for prefix in self.prefixes])
        self.child = torch.full((len(self.prefixes), vocab_size), -1)
        self.ends = torch.full((len(self.prefixes), vocab_size), -1)
        self.sequences: list[tuple[int, ...]] = []
        for state, prefix in enumerate(self.prefixes):
            for token in range(vocab_size):
                sequence = (*prefix, token)
                if sequence in state_of:
                    self.child[state, token] = state_of[sequence]
                else:
                    self.ends[state, token] = len(self.sequences)
                    self.sequences.append(sequence)
        self._row_of = {sequence: row for row, sequence in enumerate(self.sequences)}
        pad = [0] * max_length
        self.tokens = torch.tensor([[*sequence, *pad][:max_length] for sequence in self.sequences])
        lengths = torch.tensor([len(sequence) for sequence in self.sequences])
        self.mask = torch.arange(max_length) < lengths.unsqueeze(1)
        self.finished = torch.tensor([sequence[-1] == eos for sequence in self.sequences])
        self.states = torch.tensor(
            [
                [state_of[sequence[:t]] if t < len(sequence) else 0 for t in range(max_length)]
                for sequence in self.sequences
            ]
        )

    def __len__(self) -> int:
        return len(self.sequences)

    def rows(self, response: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Int[Tensor, " B"]:
        """Which of the sequences each sampled response is. ValueError for one that is not of this world."""
        check_dims(2, response=response)
        check_shapes(response=response, mask=mask)
        check_mask(mask)
        if response.is_floating_point():
            raise ValueError(f"response: wanted whole numbers, got {response.dtype}")
        found = []
        for tokens, counted in zip(response.tolist(), mask.tolist(), strict=True):
            sequence = tuple(token for token, counts in zip(tokens, counted, strict=True) if counts)
            if sequence not in self._row_of:
                raise ValueError(f"response: {sequence} is no sequence of this world")
            found.append(self._row_of[sequence])
        return torch.tensor(found, device=response.device)

    # What the training loops ask of a task.

    def tokenizer(self) -> Tokenizer:
        """One letter a token; the end token, if there is one, is token 0 (the loops have no use for another)."""
        if self.eos not in (None, 0):
            raise ValueError(f"eos: a world for the training loops ends with token 0, got {self.eos}")
        backend = character_tokenizer(LETTERS[1 : self.vocab_size], eos="a").backend
        return Tokenizer(backend, eos="a" if self.eos == 0 else None)

    def prompts(self, n: int, generator: torch.Generator | None = None) -> list[str]:
        """There is one prompt, the letter a, n times: token 0, the end token, stands before every sequence as in GPT-2."""
        check_size("n", n, 0)
        return ["a"] * n

    def scorer(self, scores: Float[Tensor, " Y"]) -> Callable[[list[str], Rollout], Tensor]:
        """A scorer for the loops: a table of one score a sequence."""
        check_dims(1, scores=scores)
        if len(scores) != len(self):
            raise ValueError(f"scores: wanted one a sequence, {len(self)}, got {len(scores)}")
        return lambda prompts, rollout: scores.to(rollout.tokens.device)[self.rows(rollout.response, rollout.mask)]


# What World.tokenizer makes of World.prompts. No prefix holds the end token, so that a prompt of it tells every prefix from
# every other. Without an end token a prompt is one of the tokens that follow, and rotary positions cannot tell "a" from
# "aa" from "aaa", where all there is to attend to is the same: give such a world to a model with learned positions.
PROMPT = [0]


def policy_logits(world: World, model: Transformer, prompt: Sequence[int] = PROMPT) -> Float[Tensor, "S V"]:
    """The logits a model gives at every state, after `prompt`."""
    longest = world.max_length - 1
    leaves = [prefix for prefix in world.prefixes if len(prefix) == longest]
    device = model.head.weight.device
    rows = torch.tensor([[*prompt, *prefix] for prefix in leaves], device=device)
    logits = model(rows)[:, len(prompt) - 1 :]
    leaf_of = {prefix[:n]: i for i, prefix in reversed(list(enumerate(leaves))) for n in range(longest + 1)}
    leaf = torch.tensor([leaf_of[prefix] for prefix in world.prefixes], device=device)
    return logits[leaf, world.depth.to(device)]


def along(world: World, table: Tensor) -> Float[Tensor, "Y L"]:
    """Read a table along every sequence: (S,) at its states, (S, V) at its choices. 0 at padding."""
    check_tensors(table=table)
    if table.shape not in (world.depth.shape, world.child.shape):
        wanted = f"{tuple(world.depth.shape)} or {tuple(world.child.shape)}"
        raise ValueError(f"table: wanted shape {wanted}, got {tuple(table.shape)}")
    entries = table[world.states] if table.dim() == 1 else table[world.states, world.tokens]
    return blank(entries, world.mask)


def token_logprobs(world: World, logits: Float[Tensor, "S V"]) -> Float[Tensor, "Y L"]:
    """log pi(a_t | s_t) of every token of every sequence; 0 at padding."""
    check_table(world, logits=logits)
    return blank(logprobs_of_tokens(logits[world.states], world.tokens), world.mask)


def sequence_logprobs(world: World, logits: Float[Tensor, "S V"]) -> Float[Tensor, " Y"]:
    """log pi(y) of every sequence. Their probabilities sum to 1."""
    return token_logprobs(world, logits).sum(1)


def check_table(world: World, **tables: Tensor) -> None:
    """Each table holds one number for each choice in each state."""
    check_tensors(**tables)
    for name, x in tables.items():
        if x.shape != world.child.shape:
            raise ValueError(f"{name}: wanted shape {tuple(world.child.shape)}, one a choice, got {tuple(x.shape)}")
    check_together(world.child, **tables)


# Two distributions over the sequences, as log-probabilities (Y,).


def kl(logp: Float[Tensor, " Y"], logq: Float[Tensor, " Y"]) -> Float[Tensor, ""]:
    """KL(p || q) = sum_y p(y) (log p(y) - log q(y)). The leash of RLHF is kl(policy, reference), the "reverse" KL; the
    "forward" one, which supervised learning minimises, is kl(target, policy)."""
    check_dims(1, logp=logp)
    check_shapes(logp=logp, logq=logq)
    never = logp == -torch.inf  # 0 log 0 = 0
    return (logp.exp() * (logp.masked_fill(never, 0.0) - logq.masked_fill(never, 0.0))).sum()


def entropy(logp: Float[Tensor, " Y"]) -> Float[Tensor, ""]:
    """-sum_y p(y) log p(y), of whole sequences, in nats."""
    check_dims(1, logp=logp)
    return -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum()


def total_variation(logp: Float[Tensor, " Y"], logq: Float[Tensor, " Y"]) -> Float[Tensor, ""]:
    """Half the sum of |p(y) - q(y)|: the largest difference in the probability of any event, from 0 to 1."""
    check_shapes(logp=logp, logq=logq)
    return (logp.exp() - logq.exp()).abs().sum() / 2


def objective(
    logp: Float[Tensor, " Y"], ref_logp: Float[Tensor, " Y"], scores: Float[Tensor, " Y"], *, beta: float
) -> Float[Tensor, ""]:
    """J = E_pi[r] - beta KL(pi || pi_ref), what RLHF maximises (Ziegler et al. 2019, eq. 2; Ouyang et al. 2022, eq. 2)."""
    check_shapes(logp=logp, ref_logp=ref_logp, scores=scores)
    check_knob("beta", beta)
    return (logp.exp() * scores).sum() - beta * kl(logp, ref_logp)


def optimum(
    ref_logp: Float[Tensor, " Y"], scores: Float[Tensor, " Y"], *, beta: float
) -> tuple[Float[Tensor, " Y"], Float[Tensor, ""]]:
    """(log pi*, J*): pi*(y) = pi_ref(y) exp(r(y) / beta) / Z, and its value beta log Z (Rafailov et al. 2023, eq. 4)."""
    check_shapes(ref_logp=ref_logp, scores=scores)
    check_knob("beta", beta, 0, open_low=True)
    unnormalised = ref_logp + scores / beta
    log_z = unnormalised.logsumexp(0)
    return unnormalised - log_z, beta * log_z


def table_of(world: World, logp: Float[Tensor, " Y"]) -> Float[Tensor, "S V"]:
    """The policy, as next-token log-probabilities, that writes sequences with these probabilities."""
    check_rows(world.tokens, logp=logp)
    weight = torch.full(world.child.shape, -torch.inf, dtype=logp.dtype)  # log of the mass behind each choice
    stops = world.ends >= 0
    weight[stops] = logp[world.ends[stops]]
    for depth in reversed(range(world.max_length - 1)):
        here = torch.nonzero(world.depth == depth).squeeze(1)
        behind = weight.logsumexp(1)
        goes_on = world.child[here] >= 0
        weight[here] = torch.where(goes_on, behind[world.child[here]], weight[here])
    unreached = (weight == -torch.inf).all(1, keepdim=True)  # there any choice will do
    return weight.masked_fill(unreached, 0.0).log_softmax(1)


# Values.


def choice_rewards(
    world: World, scores: Float[Tensor, " Y"], kl: Float[Tensor, "S V"] | None = None, *, kl_coef: float = 0.0
) -> Float[Tensor, "S V"]:
    """The reward of each choice: the score where it ends a sequence, minus kl_coef times its entry of `kl`.

    With kl = logits.log_softmax(1) - ref_logits.log_softmax(1) these are the rewards of `rewards.kl_shaped_rewards`.
    """
    check_rows(world.tokens, scores=scores)
    check_knob("kl_coef", kl_coef)
    if kl is not None:
        check_table(world, kl=kl)
    ended = torch.where(world.ends >= 0, scores[world.ends.clamp(min=0)], scores.new_zeros(()))
    return ended if kl is None else ended - kl_coef * kl


def values(
    world: World, logits: Float[Tensor, "S V"], rewards: Float[Tensor, "S V"], *, gamma: float = 1.0
) -> tuple[Float[Tensor, " S"], Float[Tensor, "S V"]]:
    """(V, Q) of the policy by backward induction: Q(s, a) = r(s, a) + gamma V(s'), V(s) = sum_a pi(a|s) Q(s, a).

    V is 0 after the last choice. Q - V are the exact advantages; `along` reads them token by token.
    """
    check_table(world, logits=logits, rewards=rewards)
    check_knob("gamma", gamma, 0, 1)
    probabilities = logits.softmax(1)
    v = rewards.new_zeros(len(rewards))
    for _ in range(world.max_length):  # one more level of the tree is right after each pass
        q = rewards + gamma * torch.where(world.child >= 0, v[world.child.clamp(min=0)], v.new_zeros(()))
        v = (probabilities * q).sum(1)
    return v, q


# Estimators: what a loss computed from samples does on average, without sampling.


def expected_gradient(
    loss: Callable[[Tensor], Tensor],
    parameter: Tensor,
    probabilities: Float[Tensor, " Y"],
    *,
    batch: int = 1,
) -> tuple[Tensor, Float[Tensor, ""]]:
    """(mean, variance) of the gradient of loss(rows), rows (batch,) drawn independently from `probabilities`.

    Every batch is enumerated, Y ** batch of them, so that losses that mix their rows (group baselines, whitening) are
    treated rightly. `loss` has to compute its log-probabilities anew in each call. The mean has the shape of `parameter`;
    the variance is the sum over its entries, E|g|^2 - |E g|^2. ValueError beyond 100,000 batches.
    """
    check_size("batch", batch)
    check_dims(1, probabilities=probabilities)
    check_tensors(parameter=parameter)
    if not parameter.requires_grad:
        raise ValueError("parameter: wanted a tensor that requires a gradient, got one that does not")
    possible = torch.nonzero(probabilities > 0).squeeze(1).tolist()
    if len(possible) > 1 and batch * math.log(len(possible)) > math.log(MOST_BATCHES) + 1e-9:
        raise ValueError(f"batch: {len(possible)} sequences and batch {batch} are more than {MOST_BATCHES:,} batches")
    mean, square = torch.zeros_like(parameter), parameter.new_zeros(())
    for rows in itertools.product(possible, repeat=batch):
        chosen = torch.tensor(rows)
        weight = probabilities[chosen].prod().detach()
        (gradient,) = torch.autograd.grad(loss(chosen), parameter, allow_unused=True)
        if gradient is not None:  # a batch that teaches nothing, such as a group of equal scores, may have none
            mean += weight * gradient
            square += weight * gradient.square().sum()
    return mean, square - mean.square().sum()
