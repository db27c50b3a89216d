"""GRPO (DeepSeekMath, Shao et al. 2024) and its relatives: several answers to a prompt judge each other, and no critic is
trained. Which relative runs is a row of the table in `critic_free`."""

from dataclasses import dataclass, field
from functools import partial

import torch

from minirl.kl import kl_k1
from minirl.losses.correction import sampling_gap, truncated_importance_weights, weighted
from minirl.masking import blank, masked_mean
from minirl.model import Transformer
from minirl.ranks import ALONE, Ranks
from minirl.rewards import missing_eos_penalty
from minirl.rollout import Prompts, Sample, Scorer, join, response_logprobs, roll_out
from minirl.run import Run
from minirl.tokenizer import Tokenizer
from minirl.train.critic_free import GRPO, CriticFree, sequence_ratio
from minirl.train.knobs import check_config
from minirl.train.memory import added, in_parts, micro_batches, share
from minirl.train.optimizer import adamw, follow_gradient, warmed_up
from minirl.types import Rollout, Tensor


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
    correction: float | None = field(default=None, repr=False)  # cap of importance weights, if another engine samples
    lr: float = 5e-4
    warmup: int = 5
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self):
        check_config(self)


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
    sample: Sample = roll_out,
    ranks: Ranks = ALONE,
) -> Transformer:
    """Raise the probability of answers that score above their group. `ref` may be None if kl_coef is 0 and max_kl is None.

    `watch` is a score that is recorded as gold_mean and never trained on. `sample` writes the answers; `ranks` are the
    processes that share the work: see minirl.ranks.
    """
    run = run or Run()
    if ref is None and (config.kl_coef > 0 or config.max_kl is not None):
        raise ValueError(f"ref: wanted a model since kl_coef = {config.kl_coef}, max_kl = {config.max_kl}, got None")
    if config.correction is not None and row.surrogate is sequence_ratio:
        raise ValueError("correction: weighs tokens, and this row has one ratio a response; None for it")
    optimizer = adamw(policy)
    generator = torch.Generator().manual_seed(config.seed)
    done = run.track(policy=policy, optimizer=optimizer, generator=generator)
    for step in run.steps(done, config.steps):
        lr = warmed_up(step, config.lr, config.warmup)

        # 1. and 2. roll out and score, again while the row asks for other groups
        texts, rollout, scores, dead = sample_groups(policy, tokenizer, prompts, score, config, row, generator, sample)
        mask = row.counted(rollout)
        if not mask.any():
            raise ValueError(
                f"max_new_tokens: every response ran into the limit of {config.max_new_tokens}, and this row trains only "
                f"on those that ended"
            )
        old_logprobs, weights, gap = rollout.logprobs, None, {}
        if config.correction is not None:  # another engine sampled: what it calls this policy is not quite this policy
            old_logprobs, _ = in_parts(partial(read, policy, config), rollout, config.micro_batch, ranks)
            weights = truncated_importance_weights(old_logprobs, rollout.logprobs, rollout.mask, cap=config.correction)
            gap = {"sampling_gap": sampling_gap(old_logprobs, rollout.logprobs, rollout.mask)}
        ref_logprobs = kl = torch.zeros_like(old_logprobs)
        if ref is not None:
            ref_logprobs, _ = in_parts(partial(read, ref, config), rollout, config.micro_batch, ranks)
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
                for micro, part in micro_batches(rollout, rows, config.micro_batch, counted=mask, ranks=ranks):
                    T, reduce = part.mask.shape[1], share(row.reduce(config), mask, rows, micro)
                    logprobs, entropies = read(policy, config, part)
                    counted = mask[micro, :T]
                    corrected = reduce if weights is None else weighted(reduce, weights[micro, :T])
                    loss, stats = row.surrogate(
                        logprobs, old_logprobs[micro, :T], advantages[micro], counted, config, corrected
                    )
                    if row.penalty is not None and config.kl_coef > 0:
                        penalty = row.penalty(logprobs, ref_logprobs[micro, :T], counted)
                        loss = loss + config.kl_coef * reduce(penalty, counted)
                    loss.backward()
                    sums = added(sums, {"loss": loss})
                    stats = stats | {"entropy": masked_mean(entropies, part.mask)}
                    means = added(means, stats, counted.sum() / mask[rows].sum())
                sums, means = ranks.total(sums), ranks.total(means)
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
            | gap
            | ({} if ref is None else {"kl": sequence_kl})
            | ({} if watch is None else {"gold_mean": watch(texts, rollout).mean()}),
        )
        if config.max_kl is not None and sequence_kl > config.max_kl:
            run.stop(f"KL {sequence_kl:.2f} is above max_kl = {config.max_kl}")
    return policy


def read(model: Transformer, config: GRPOConfig, part: Rollout) -> tuple[Tensor, Tensor]:
    """log pi of the answers at the sampling temperature, and the entropy behind each token."""
    return response_logprobs(
        model,
        part.tokens,
        part.starts,
        part.mask.shape[1],
        temperature=config.temperature,
        prompt_index=part.prompt_index,
    )


def sample_groups(
    policy: Transformer,
    tokenizer: Tokenizer,
    prompts: Prompts,
    score: Scorer,
    config: GRPOConfig,
    row: CriticFree,
    generator: torch.Generator,
    sample: Sample = roll_out,
) -> tuple[list[str], Rollout, Tensor, Tensor]:
    """config.prompts groups of answers that the row keeps: prompts, rollout, scores, and the share of dead groups sampled.

    Sampling is repeated for the groups that are missing, at most config.resample times; a smaller batch is then trained
    on, and ValueError is raised if there is none at all.
    """
    kept_texts, kept, kept_scores, sampled, dead = [], [], [], 0, 0
    for _ in range(1 + config.resample):
        missing = config.prompts - sum(len(scores) for scores in kept_scores) // config.group_size
        texts, rollout = sample(
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
