"""GRPO (DeepSeekMath, Shao et al. 2024) and its relatives: several answers to a prompt judge each other, and no critic is
trained. Which relative runs is a row of the table in `critic_free`."""

from dataclasses import dataclass, field

import torch

from minirl.kl import kl_k1
from minirl.masking import blank, masked_mean
from minirl.model import Transformer
from minirl.rewards import missing_eos_penalty
from minirl.rollout import Prompts, Scorer, join, response_logprobs, roll_out
from minirl.run import Run
from minirl.tokenizer import Tokenizer
from minirl.train.critic_free import GRPO, CriticFree
from minirl.train.memory import added, check_micro_batch, in_parts, micro_batches, share
from minirl.train.optimizer import adamw, follow_gradient, warmed_up
from minirl.types import Rollout, Tensor, check_knob


@dataclass(frozen=True)
class GRPOConfig:
    steps: int = 40
    prompts: int = 16  # a step
    group_size: int = 16  # answers a prompt
    minibatch: int = 256  # answers a gradient step
    micro_batch: int | None = field(default=None, repr=False)  # answers in memory at a time; changes no number
    epochs: int = 1
    max_new_tokens: int = 12
    temperature: float = 1.0
    kl_coef: float = 0.0  # beta; where it acts is the row's choice
    clip_eps: float = 0.2
    clip_eps_high: float | None = None  # None: the same
    missing_eos_penalty: float = 0.0
    max_kl: float | None = None  # stop the run above this many nats from the reference
    resample: int = 4  # how often to sample again for groups the row does not keep
    lr: float = 5e-4
    warmup: int = 5
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self):
        check_knob("group_size", self.group_size, 1)
        check_knob("minibatch", self.minibatch, 1)
        check_knob("epochs", self.epochs, 1)
        check_micro_batch(self.micro_batch)


def train(
    policy: Transformer,
    ref: Transformer | None,
    tokenizer: Tokenizer,
    prompts: Prompts,
    score: Scorer,
    config: GRPOConfig,
    run: Run | None = None,
    *,
    row: CriticFree = GRPO,
    watch: Scorer | None = None,
) -> Transformer:
    """Raise the probability of answers that score above their group. `ref` may be None if kl_coef is 0 and max_kl is None.

    `watch` is a score that is recorded as gold_mean and never trained on.
    """
    run = run or Run()
    if ref is None and (config.kl_coef > 0 or config.max_kl is not None):
        raise ValueError(f"ref: wanted a model since kl_coef = {config.kl_coef}, max_kl = {config.max_kl}, got None")
    optimizer = adamw(policy)
    generator = torch.Generator().manual_seed(config.seed)
    done = run.track(policy=policy, optimizer=optimizer, generator=generator)
    for step in run.steps(done, config.steps):
        lr = warmed_up(step, config.lr, config.warmup)

        # 1. and 2. roll out and score, again while the row asks for other groups
        texts, rollout, scores, dead = sample_groups(policy, tokenizer, prompts, score, config, row, generator)
        mask = row.counted(rollout)
        if not mask.any():
            raise ValueError(
                f"max_new_tokens: every response ran into the limit of {config.max_new_tokens}, and this row trains only "
                f"on those that ended"
            )
        old_logprobs = rollout.logprobs
        ref_logprobs = kl = torch.zeros_like(old_logprobs)
        if ref is not None:
            ref_logprobs, _ = in_parts(
                lambda part: response_logprobs(
                    ref,
                    part.tokens,
                    part.starts,
                    part.mask.shape[1],
                    temperature=config.temperature,
                    prompt_index=part.prompt_index,
                ),
                rollout,
                config.micro_batch,
            )
            kl = kl_k1(old_logprobs, ref_logprobs)

        # 3. advantages: one number an answer
        advantages = row.advantages(row.charge(scores, kl, rollout.mask, config.kl_coef), config.group_size)

        # 4. update
        for _ in range(config.epochs):
            for rows in torch.randperm(len(rollout), generator=generator).split(config.minibatch):
                if not mask[rows].any():  # a minibatch of truncated responses, where the row leaves these out
                    continue
                optimizer.zero_grad()
                sums, means = {}, {}
                for micro, part in micro_batches(rollout, rows, config.micro_batch, counted=mask):
                    T, reduce = part.mask.shape[1], share(row.reduce(config), mask, rows, micro)
                    logprobs, entropies = response_logprobs(
                        policy,
                        part.tokens,
                        part.starts,
                        T,
                        temperature=config.temperature,
                        prompt_index=part.prompt_index,
                    )
                    counted = mask[micro, :T]
                    loss, stats = row.surrogate(
                        logprobs, old_logprobs[micro, :T], advantages[micro], counted, config, reduce
                    )
                    if row.penalty is not None and config.kl_coef > 0:
                        penalty = row.penalty(logprobs, ref_logprobs[micro, :T], counted)
                        loss = loss + config.kl_coef * reduce(penalty, counted)
                    loss.backward()
                    sums = added(sums, {"loss": loss})
                    stats = stats | {"entropy": masked_mean(entropies, part.mask)}
                    means = added(means, stats, counted.sum() / mask[rows].sum())
                update_stats = follow_gradient(
                    optimizer, sums["loss"], step=step, lr=lr, max_grad_norm=config.max_grad_norm
                )

        sequence_kl = blank(kl, rollout.mask).sum(1).mean()
        run.record(
            step,
            means
            | update_stats
            | sums
            | {
                "reward_mean": scores.mean(),
                "reward_std": scores.std(correction=0),
                "dead_groups": dead,
                "length_mean": rollout.mask.sum(1).float().mean(),
                "finished": rollout.finished.float().mean(),
            }
            | ({} if ref is None else {"kl": sequence_kl})
            | ({} if watch is None else {"gold_mean": watch(texts, rollout).mean()}),
        )
        if config.max_kl is not None and sequence_kl > config.max_kl:
            run.stop(f"KL {sequence_kl:.2f} is above max_kl = {config.max_kl}")
    return policy


def sample_groups(
    policy: Transformer,
    tokenizer: Tokenizer,
    prompts: Prompts,
    score: Scorer,
    config: GRPOConfig,
    row: CriticFree,
    generator: torch.Generator,
) -> tuple[list[str], Rollout, Tensor, Tensor]:
    """config.prompts groups of answers that the row keeps: prompts, rollout, scores, and the share of dead groups sampled.

    Sampling is repeated for the groups that are missing, at most config.resample times; a smaller batch is then trained
    on, and ValueError is raised if there is none at all.
    """
    kept_texts, kept, kept_scores, sampled, dead = [], [], [], 0, 0
    for _ in range(1 + config.resample):
        missing = config.prompts - sum(len(scores) for scores in kept_scores) // config.group_size
        texts, rollout = roll_out(
            policy,
            tokenizer,
            prompts(missing, generator),
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            group_size=config.group_size,
            generator=generator,
        )
        scores = score(texts, rollout)
        scores = missing_eos_penalty(scores, rollout.finished, penalty=config.missing_eos_penalty)
        groups = scores.view(missing, config.group_size)
        keep = row.keep(groups)
        sampled, dead = sampled + missing, dead + (groups == groups[:, :1]).all(1).sum()
        if keep.any():
            rows = keep.repeat_interleave(config.group_size)
            kept_texts += [text for text, keeps in zip(texts, rows.tolist(), strict=True) if keeps]
            kept.append(rollout[rows])
            kept_scores.append(scores[rows])
        if sum(len(scores) for scores in kept_scores) == config.prompts * config.group_size:
            break
    if not kept:
        raise ValueError(
            f"prompts: {sampled} groups in a row were dead (all scores equal), so there is nothing to learn from: "
            f"the task is too hard or too easy for this policy, or group_size = {config.group_size} is too small"
        )
    return kept_texts, join(kept), torch.cat(kept_scores), dead / sampled
