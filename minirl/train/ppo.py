"""PPO for text (Schulman et al. 2017; Ziegler et al. 2019; Ouyang et al. 2022): a critic, a clip, and KL in the reward."""

from dataclasses import dataclass, field

import torch

from minirl.kl import AdaptiveKL, kl_k1
from minirl.losses.policy import ppo_clip_loss, value_clip_loss, value_loss
from minirl.masking import blank, masked_mean, masked_whiten, token_mean
from minirl.model import PolicyWithValue, Transformer
from minirl.ranks import ALONE, Ranks
from minirl.rewards import kl_shaped_rewards, missing_eos_penalty
from minirl.rollout import Prompts, Sample, Scorer, response_logprobs, response_logprobs_and_values, roll_out
from minirl.run import Run
from minirl.tokenizer import Tokenizer
from minirl.train.knobs import check_config
from minirl.train.memory import added, in_parts, micro_batches, share
from minirl.train.optimizer import adamw, follow_gradient, warmed_up
from minirl.types import Float, Rollout, Stats, Tensor, check_knob


@dataclass(frozen=True)
class PPOConfig:
    steps: int = 60
    batch: int = 128  # responses a step
    minibatch: int = 64  # responses a gradient step
    micro_batch: int | None = field(default=None, repr=False)  # responses in memory at a time; changes no number
    epochs: int = 2  # passes over a step's responses
    max_new_tokens: int = 40
    temperature: float = 1.0
    kl_coef: float = 0.15  # beta: the price of a nat of KL, in units of the score
    kl_target: float | None = None  # None: kl_coef stays; else it is moved until KL is near this many nats
    kl_horizon: int = 2000  # responses
    gamma: float = 1.0
    lam: float = 0.95
    clip_eps: float = 0.2
    value_clip_eps: float = 0.5
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    missing_eos_penalty: float = 0.0  # taken off the score of a response that never ended
    max_kl: float | None = None  # stop the run above this many nats from the reference
    lr: float = 3e-4
    warmup: int = 5
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self):
        check_config(self)
        check_knob("minibatch", self.minibatch, 1, self.batch)


def train(
    model: PolicyWithValue,
    ref: Transformer,
    tokenizer: Tokenizer,
    prompts: Prompts,
    score: Scorer,
    config: PPOConfig,
    run: Run | None = None,
    *,
    watch: Scorer | None = None,
    sample: Sample = roll_out,
    ranks: Ranks = ALONE,
) -> PolicyWithValue:
    """Maximise E[score - kl_coef * KL(policy || ref)]. `ref` is the frozen model the policy is kept close to.

    `watch` is a score that is recorded as gold_mean and never trained on. `sample` writes the responses; `ranks` are the
    processes that share the work: see minirl.ranks.
    """
    run = run or Run()
    optimizer = adamw(model)
    generator = torch.Generator().manual_seed(config.seed)
    adaptive = AdaptiveKL(config.kl_coef, target=config.kl_target or 1.0, horizon=config.kl_horizon)
    done = run.track(model=model, optimizer=optimizer, generator=generator, adaptive=adaptive)
    for step in run.steps(done, config.steps):
        kl_coef, lr = adaptive.kl_coef, warmed_up(step, config.lr, config.warmup)

        # 1. roll out: the policy writes responses
        texts, rollout = sample(
            model,
            tokenizer,
            prompts(config.batch, generator),
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            generator=generator,
        )

        # 2. score: one number a response
        scores = missing_eos_penalty(score(texts, rollout), rollout.finished, penalty=config.missing_eos_penalty)

        stats = improve(
            model,
            ref,
            rollout,
            scores,
            config,
            optimizer,
            kl_coef=kl_coef,
            step=step,
            lr=lr,
            generator=generator,
            ranks=ranks,
        )
        if config.kl_target is not None:
            adaptive.update(float(stats["kl"]), config.batch)
        run.record(step, stats | ({} if watch is None else {"gold_mean": watch(texts, rollout).mean()}))
        if config.max_kl is not None and stats["kl"] > config.max_kl:
            run.stop(f"KL {stats['kl']:.2f} is above max_kl = {config.max_kl}")
    return model


def improve(
    model: PolicyWithValue,
    ref: Transformer,
    rollout: Rollout,
    scores: Float[Tensor, " B"],
    config: PPOConfig,
    optimizer: torch.optim.Optimizer,
    *,
    kl_coef: float,
    step: int,
    lr: float,
    generator: torch.Generator,
    ranks: Ranks = ALONE,
) -> Stats:
    """The second half of a step: rewards, advantages and updates, on responses that are there and scored."""
    mask, length = rollout.mask, rollout.mask.shape[1]

    knobs = {"temperature": config.temperature}

    def read(part: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        wanted = {"entropy_gradient": config.entropy_coef > 0}
        return response_logprobs_and_values(model, part.tokens, part.starts, part.mask.shape[1], **knobs, **wanted)

    # 2. the score goes to the last token, KL to the reference to every token
    first = None
    if config.micro_batch is None and config.minibatch >= len(rollout) and ranks.size == 1:
        first = read(rollout)  # with its gradient: the first update reads the same rows with the same weights
        old_logprobs, _, values = (table.detach() for table in first)
    else:
        old_logprobs, _, values = in_parts(read, rollout, config.micro_batch, ranks)
    ref_logprobs, _ = in_parts(
        lambda part: response_logprobs(ref, part.tokens, part.starts, length, **knobs),
        rollout,
        config.micro_batch,
        ranks,
    )
    kl = kl_k1(old_logprobs, ref_logprobs)
    rewards = kl_shaped_rewards(scores, kl, mask, kl_coef=kl_coef)

    # 3. advantages: which tokens did better than the critic expected
    advantages, returns = model.policy.ops.gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)
    whitened = masked_whiten(advantages, mask)

    # 4. update: a few epochs of minibatches on these responses
    for _ in range(config.epochs):
        for rows in torch.randperm(len(rollout), generator=generator).split(config.minibatch):
            optimizer.zero_grad()
            sums, means, seen = {}, {}, torch.zeros_like(values)
            for micro, part in micro_batches(rollout, rows, config.micro_batch, ranks=ranks):
                T, reduce = part.mask.shape[1], share(token_mean, mask, rows, micro)
                logprobs, entropies, new_values = read(part) if first is None else (table[rows] for table in first)
                first = None
                policy_loss, stats = ppo_clip_loss(
                    logprobs,
                    old_logprobs[micro, :T],
                    whitened[micro, :T],
                    part.mask,
                    clip_eps=config.clip_eps,
                    reduce=reduce,
                )
                value_loss, value_stats = value_clip_loss(
                    new_values,
                    values[micro, :T],
                    returns[micro, :T],
                    part.mask,
                    clip_eps=config.value_clip_eps,
                    reduce=reduce,
                )
                seen[micro, :T] = new_values.detach()
                mean_entropy = reduce(entropies, part.mask)
                loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * mean_entropy
                loss.backward()
                parts = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": mean_entropy, "loss": loss}
                sums = added(sums, parts)
                means = added(means, value_stats | stats, part.mask.sum() / mask[rows].sum())
            sums, means, seen = ranks.total(sums), ranks.total(means), ranks.add(seen)
            means["explained_variance"] = explained_variance(seen[rows], returns[rows], mask[rows])
            update_stats = follow_gradient(
                optimizer, sums["loss"], step=step, lr=lr, max_grad_norm=config.max_grad_norm, parts=sums
            )

    names = ("explained_variance", "loss", "ratio_mean", "clip_fraction", "approx_kl")
    return (
        {
            "reward_mean": scores.mean(),
            "reward_std": scores.std(correction=0),
            "kl": blank(kl, mask).sum(1).mean(),
            "kl_coef": torch.tensor(kl_coef),
            "value_mean": masked_mean(values, mask),
            "return_mean": masked_mean(returns, mask),
            "advantage_std": advantages[mask].std(correction=0),
            "length_mean": mask.sum(1).float().mean(),
            "finished": rollout.finished.float().mean(),
        }
        | {name: means[name] for name in names}  # of the last minibatch, like the losses
        | update_stats
        | sums
    )


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Of a whole minibatch: that of a part is no share of it."""
    return value_loss(values, returns, mask)[1]["explained_variance"]
