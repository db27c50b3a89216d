"""CartPole, where one sees the actor-critic loop at its smallest: PPO (Schulman et al. 2017) and, beside it, REINFORCE (Williams
1992). An action is a token of a vocabulary of two, so the losses are those for text. Needs gymnasium (`minirl[course]`).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from minirl.advantages import discounted_returns, gae
from minirl.logprobs import token_logprobs
from minirl.losses.policy import ppo_clip_loss, reinforce_loss, value_loss
from minirl.masking import masked_whiten
from minirl.train.knobs import check_config
from minirl.train.optimizer import adamw, update
from minirl.types import Bool, Float, Int, Stats, Tensor, check_dims, check_knob, check_rows, check_shapes

LIMIT = 500  # CartPole-v1 cuts an episode off here
Policy = Callable[[Tensor], Tensor]  # states (B, 4) -> actions (B,)


@dataclass(frozen=True)
class CartPoleConfig:
    total_steps: int = 100_000  # environment steps, over all environments
    environments: int = 16
    length: int = 64  # steps of each environment between two updates (PPO)
    epochs: int = 4  # passes over these steps (PPO)
    minibatch: int = 256
    gamma: float = 0.99
    lam: float = 0.98
    clip_eps: float = 0.2
    value_coef: float = 1e-4  # returns are near 100: their squares would drown the policy in the shared gradient norm
    lr: float = 2e-3  # falls linearly to 0
    max_grad_norm: float = 0.5
    seed: int = 0

    def __post_init__(self):
        check_knob("environments", self.environments, 1)
        check_knob("length", self.length, 1)
        check_knob("total_steps", self.total_steps, self.environments * self.length)
        check_knob("epochs", self.epochs, 1)
        check_knob("minibatch", self.minibatch, 1, self.environments * self.length)
        check_knob("lr", self.lr, 0, open_low=True)
        check_config(self)


@dataclass(frozen=True)
class Steps:
    """T steps of B environments. `next_states` are the true ones: where an episode ended, the state it ended in."""

    states: Float[Tensor, "B T 4"]
    actions: Int[Tensor, "B T"]
    rewards: Float[Tensor, "B T"]
    next_states: Float[Tensor, "B T 4"]
    terminated: Bool[Tensor, "B T"]  # the pole fell, or the cart left its rail: nothing can follow
    truncated: Bool[Tensor, "B T"]  # the clock ran out: the game would have gone on


class ActorCritic(nn.Module):
    """states (..., 4) -> logits of the two actions (..., 2) and V(s) (...): two small networks side by side.

    The critic counts in units of `value_unit`: with gamma = .99 a cart that never falls is worth 1 / (1 - gamma) = 100, which
    a network with outputs near 1 is slow to reach. In units of 1, with value_coef = .5, one seed of three ended at 368 of 500.
    """

    def __init__(self, *, width: int = 64, value_unit: float = 100.0, generator: torch.Generator | None = None):
        super().__init__()
        self.value_unit = value_unit
        self.actor = nn.Sequential(
            nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)
        )
        self.critic = nn.Sequential(
            nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )
        for network, last_gain in ((self.actor, 0.01), (self.critic, 1.0)):
            layers = [layer for layer in network if isinstance(layer, nn.Linear)]
            for layer in layers:
                gain = last_gain if layer is layers[-1] else 2**0.5
                nn.init.orthogonal_(layer.weight, gain, generator=generator)
                nn.init.zeros_(layer.bias)

    def forward(self, states: Float[Tensor, "... 4"]) -> tuple[Float[Tensor, "... 2"], Float[Tensor, "..."]]:
        return self.actor(states), self.value_unit * self.critic(states).squeeze(-1)


def sampled(model: ActorCritic, generator: torch.Generator) -> Policy:
    """The policy that draws each action from the model's probabilities."""

    @torch.no_grad()
    def choose(states: Tensor) -> Tensor:
        return torch.multinomial(model.actor(states).softmax(-1), 1, generator=generator).squeeze(-1)

    return choose


class Carts:
    """B carts side by side. A cart whose episode ended starts again within the same step (SAME_STEP autoreset)."""

    def __init__(self, n: int, *, seed: int):
        try:
            import gymnasium
        except ImportError as error:
            raise ImportError("CartPole needs gymnasium, which is not installed: pip install gymnasium") from error
        mode = gymnasium.vector.AutoresetMode.SAME_STEP
        makers = [lambda: gymnasium.make("CartPole-v1", max_episode_steps=LIMIT)] * n
        self.envs = gymnasium.vector.SyncVectorEnv(makers, autoreset_mode=mode)
        self.states = torch.tensor(self.envs.reset(seed=seed)[0])
        self.earned, self.returns = [0.0] * n, deque(maxlen=20)  # so far in this episode; of the last 20 that ended

    def steps(self, choose: Policy, length: int) -> Steps:
        """`length` steps of every cart, from where the last call left them."""
        rows = []
        for _ in range(length):
            states, actions = self.states, choose(self.states)
            check_rows(states, actions=actions)
            after, rewards, terminated, truncated, info = self.envs.step(actions.numpy())
            self.states = torch.tensor(after)
            self.earned = [earned + float(r) for earned, r in zip(self.earned, rewards, strict=True)]
            for i in (terminated | truncated).nonzero()[0]:
                after[i] = info["final_obs"][i]  # what was there is the first state of the next episode
                self.returns.append(self.earned[i])
                self.earned[i] = 0.0
            ends = torch.tensor(terminated), torch.tensor(truncated)
            rows.append((states, actions, torch.tensor(rewards).float(), torch.tensor(after), *ends))
        return Steps(*(torch.stack(column, dim=1) for column in zip(*rows, strict=True)))


def play(choose: Policy, episodes: int, *, seed: int) -> tuple[Steps, Bool[Tensor, "B T"]]:
    """Whole episodes, one a row, each in a cart of its own, and the mask of the steps that belong to them."""
    carts, played, alive = Carts(episodes, seed=seed), [], torch.ones(episodes, 1, dtype=torch.bool)
    masks = []
    while alive.any():
        played.append(carts.steps(choose, 1))
        masks.append(alive)
        alive = alive & ~(played[-1].terminated | played[-1].truncated)
    columns = (torch.cat([getattr(step, name) for step in played], dim=1) for name in Steps.__dataclass_fields__)
    return Steps(*columns), torch.cat(masks, dim=1)


def what_follows(next_values: Float[Tensor, "B T"], steps: Steps) -> Float[Tensor, "B T"]:
    """The value after each step: V(s_{t+1}), and 0 after a fall, however high the critic thinks of a fallen pole."""
    return next_values.masked_fill(steps.terminated, 0.0)


def advantages_of(
    steps: Steps, values: Float[Tensor, "B T"], next_values: Float[Tensor, "B T"], *, gamma: float, lam: float
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """(advantages, returns) of B rows that hold several episodes, or parts of them, one after the other.

    Each part is a row of its own for `gae`: its own mask, and its own `last_values`, since what follows a fall is nothing
    and what follows a cut, be it the clock's or the end of our T steps, is V(s_{t+1}).
    """
    check_dims(2, values=values)
    check_shapes(values=values, next_values=next_values, rewards=steps.rewards)
    last = steps.terminated | steps.truncated  # the last step of a part
    part = last.long().cumsum(1) - last.long()  # 0 0 0 1 1 1 1 2 ...: which part of its row a step belongs to
    last[:, -1] = True
    masks = part[:, None] == torch.arange(int(part.max()) + 1)[:, None]  # (B, parts, T)
    last_values = (what_follows(next_values, steps) * last)[:, None].mul(masks).sum(2)
    rewards, v = (x[:, None].expand(masks.shape).flatten(0, 1) for x in (steps.rewards, values))
    mask = masks.flatten(0, 1)
    results = gae(rewards, v, mask, gamma=gamma, lam=lam, last_values=last_values.flatten())
    return tuple(x.view(masks.shape).sum(1) for x in results)  # a step counts in one part and is 0 in the others


def ppo_update(
    model: ActorCritic,
    optimizer: torch.optim.Optimizer,
    steps: Steps,
    advantages: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    config: CartPoleConfig,
    *,
    step: int,
    lr: float,
    generator: torch.Generator,
) -> Stats:
    """Several epochs of minibatches on the same steps. The clip is what makes more than one update safe."""
    with torch.no_grad():
        old_logprobs = token_logprobs(model(steps.states)[0], steps.actions)
    whitened = masked_whiten(advantages, torch.ones_like(advantages, dtype=torch.bool))
    # each step becomes a row of its own, so that a minibatch mixes all times and all carts
    states = steps.states.view(-1, 1, 4)
    actions, old, good, wanted = (x.reshape(-1, 1) for x in (steps.actions, old_logprobs, whitened, returns))
    for _ in range(config.epochs):
        for rows in torch.randperm(len(states), generator=generator).split(config.minibatch):
            mask = torch.ones(len(rows), 1, dtype=torch.bool)
            logits, values = model(states[rows])
            logprobs = token_logprobs(logits, actions[rows])
            policy_loss, stats = ppo_clip_loss(logprobs, old[rows], good[rows], mask, clip_eps=config.clip_eps)
            critic_loss, value_stats = value_loss(values, wanted[rows], mask)
            loss = policy_loss + config.value_coef * critic_loss
            update(optimizer, loss, step=step, lr=lr, max_grad_norm=config.max_grad_norm)
    return value_stats | stats


def train_ppo(config: CartPoleConfig) -> tuple[ActorCritic, list[dict]]:
    """Roll out a stretch of every cart, advantages from the critic's values, update; until the steps are spent."""
    generator = torch.Generator().manual_seed(config.seed)
    model = ActorCritic(generator=generator)
    optimizer, carts, records = adamw(model), Carts(config.environments, seed=config.seed), []
    updates = config.total_steps // (config.environments * config.length)
    for i in range(updates):
        steps = carts.steps(sampled(model, generator), config.length)
        with torch.no_grad():
            values, next_values = model(steps.states)[1], model(steps.next_states)[1]
        advantages, returns = advantages_of(steps, values, next_values, gamma=config.gamma, lam=config.lam)
        lr = config.lr * (1 - i / updates)
        stats = ppo_update(model, optimizer, steps, advantages, returns, config, step=i + 1, lr=lr, generator=generator)
        if carts.returns:
            record = {"step": (i + 1) * steps.rewards.numel(), "reward_mean": sum(carts.returns) / len(carts.returns)}
            records.append(
                record | {"value_mean": float(values.mean()), "clip_fraction": float(stats["clip_fraction"])}
            )
    return model, records


def train_reinforce(config: CartPoleConfig) -> tuple[ActorCritic, list[dict]]:
    """Plain REINFORCE: whole episodes, what each step still earned as its weight, one update a batch, no critic.

    The last batch is finished, so it takes a few thousand steps more than it was given.
    """
    generator = torch.Generator().manual_seed(config.seed)
    model = ActorCritic(generator=generator)
    optimizer, taken, batch, records = adamw(model), 0, 0, []
    while taken < config.total_steps:
        batch += 1
        steps, mask = play(sampled(model, generator), config.environments, seed=10_000 * config.seed + 100 * batch)
        returns = discounted_returns(steps.rewards, mask, gamma=config.gamma)
        logprobs = token_logprobs(model.actor(steps.states), steps.actions)
        loss, _ = reinforce_loss(logprobs, returns, mask)
        lr = config.lr * (1 - taken / config.total_steps)
        update(optimizer, loss, step=batch, lr=lr, max_grad_norm=config.max_grad_norm)
        taken += int(mask.sum())
        records.append({"step": taken, "reward_mean": float((steps.rewards * mask).sum(1).mean())})
    return model, records


@torch.no_grad()
def evaluate(model: ActorCritic, *, episodes: int = 20, seed: int) -> float:
    """Mean return of `episodes` sampled episodes."""
    steps, mask = play(sampled(model, torch.Generator().manual_seed(seed)), episodes, seed=seed)
    return float((steps.rewards * mask).sum(1).mean())
