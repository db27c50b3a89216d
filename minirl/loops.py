"""The loops that `python -m minirl train` knows, and what each of them is given: a Job."""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

from minirl.disk import check_sums
from minirl.lora import adapted, base_of
from minirl.model import PolicyWithValue, RewardModel, Transformer, summed
from minirl.pretrained import load_reward_model
from minirl.ranks import ALONE, Ranks
from minirl.rollout import (
    Rule,
    Sample,
    Scorer,
    join,
    model_scorer,
    preference_pairs,
    roll_out,
    rule_scorer,
    scorer_of_ranks,
)
from minirl.run import Run
from minirl.tasks import DATA, addition, countdown, digit_sum, stories
from minirl.tokenizer import Tokenizer
from minirl.train import critic_free, dpo, grpo, kto, ppo, pretrain, reward_model, sft
from minirl.train.settings import ADDITION, COUNTDOWN, DIGIT_SUM, PREFERENCE_PAIRS, STORIES
from minirl.types import PreferenceBatch

TASKS = {
    "stories": (stories, STORIES),
    "digit_sum": (digit_sum, DIGIT_SUM),
    "addition": (addition, ADDITION),
    "countdown": (countdown, COUNTDOWN),
}
PROMPTS_AT_ONCE = 32  # of a file, whose prompts may be long and whose model may be large
TASK_FORMS = f"{', '.join(TASKS)}, gsm8k:PATH (its file or folder) or a .jsonl file of prompts"


@dataclass(frozen=True)
class Job:
    """Everything a loop needs, found and loaded."""

    task: ModuleType | SimpleNamespace
    model: Transformer  # where training starts
    tokenizer: Tokenizer
    reward: str | None
    seed: int
    device: str
    max_new_tokens: int | None = None  # of sampled pairs and of the samples shown; None: what the task needs
    sampled_pairs: int = PREFERENCE_PAIRS
    ranks: Ranks = ALONE
    served: Sample | None = None  # what samples in training, where it is a server

    @property
    def sample(self) -> Sample:
        return self.served or partial(roll_out, ranks=self.ranks)

    @property
    def length(self) -> int:
        return self.task.MAX_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens

    @property
    def ref(self) -> Transformer:
        """The model as it starts, frozen: a copy, or with LoRA the same tensors without the corrections."""
        if any(True for _ in adapted(self.model)):
            return base_of(self.model)
        return copy.deepcopy(self.model).requires_grad_(False)

    @property
    def scorer(self) -> Scorer:
        """--reward, or what the task is paid with: the stored reward model where there is one, else its own score."""
        judge = self.judge
        if judge is not None:
            return scorer_of_ranks(model_scorer(judge), self.ranks, split=True)
        if self.reward is not None:
            return scorer_of_ranks(rule_scorer(load_rule(self.reward), self.tokenizer), self.ranks, split=False)
        if getattr(self.task, "score", None) is None:
            raise ValueError(
                "--reward: this task has no score of its own; name rule.py:function or a reward model's folder"
            )
        return scorer_of_ranks(rule_scorer(self.task.score, self.tokenizer), self.ranks, split=False)

    @property
    def judge(self) -> RewardModel | None:
        """The reward model that pays, None where a rule does."""
        if self.reward is None:
            folder = stored_weights(self.task, "reward_model")
        else:
            folder = None if ".py:" in self.reward else Path(self.reward)
        if folder is None:
            return None
        check_sums(folder)
        judge, tokenizer = load_reward_model(folder)
        if tokenizer is not None and tokenizer.vocab_size != self.tokenizer.vocab_size:
            raise ValueError(
                f"--reward: {folder} has {tokenizer.vocab_size} tokens, the policy {self.tokenizer.vocab_size}"
            )
        return judge.to(self.device).requires_grad_(False)

    @property
    def watch(self) -> Scorer | None:
        gold = getattr(self.task, "gold", None)
        return None if gold is None else scorer_of_ranks(rule_scorer(gold, self.tokenizer), self.ranks, split=False)

    def examples(self, kind: str) -> pretrain.Examples:
        found = getattr(self.task, kind, None)
        if found is None:
            raise ValueError(
                f"--task: this task has no {kind.replace('_', ' ')} to learn from; use {', '.join(TASKS)} or gsm8k:PATH"
            )
        return found

    def pairs(self) -> PreferenceBatch:
        """Pairs of the model's own responses, ordered by the task's noisy labeller, or by the reward where it has none."""
        generator = torch.Generator().manual_seed(self.seed + 10_000)
        prompts = self.task.prompts(self.sampled_pairs, generator)
        at_once = len(prompts) if isinstance(self.task, ModuleType) else PROMPTS_AT_ONCE  # our worlds are small
        parts = [
            roll_out(
                self.model,
                self.tokenizer,
                prompts[i : i + at_once],
                max_new_tokens=self.length,
                group_size=2,
                generator=generator,
                ranks=self.ranks,
            )
            for i in range(0, len(prompts), at_once)
        ]
        texts = [text for part, _ in parts for text in part]
        rollout = parts[0][1] if len(parts) == 1 else join([part for _, part in parts])
        truth = self.watch or self.scorer
        scores = truth(texts, rollout)
        return preference_pairs(rollout, stories.label(scores[::2], scores[1::2], generator))


@dataclass(frozen=True)
class Loop:
    config: type
    settings: str  # which entry of the settings of a task
    start: str  # which stored weights it starts from
    run: Callable  # (job, config, run) -> the trained model
    about: str
    knobs: dict = field(default_factory=dict)  # what the algorithm itself sets; the user's go first


def run_pretrain(job: Job, config, run: Run):
    return pretrain.train(job.model, job.tokenizer, job.examples("pretraining_examples"), config, run)


def run_sft(job: Job, config, run: Run):
    return sft.train(job.model, job.tokenizer, job.examples("demonstrations"), config, run)


def run_reward_model(job: Job, config, run: Run):
    judge = RewardModel(copy.deepcopy(job.model), summed).to(job.device)
    return reward_model.train(judge, job.pairs(), config, run)


def run_ppo(job: Job, config, run: Run):
    actor, ref = PolicyWithValue(job.model), job.ref
    job.ranks.spread(actor, ref)
    return ppo.train(
        actor,
        ref,
        job.tokenizer,
        job.task.prompts,
        job.scorer,
        config,
        run,
        watch=job.watch,
        sample=job.sample,
        ranks=job.ranks,
    )


def run_critic_free(row: critic_free.CriticFree, job: Job, config, run: Run):
    needs_ref = config.kl_coef > 0 or config.max_kl is not None
    ref = job.ref if needs_ref else None
    job.ranks.spread(job.model, *([ref] if needs_ref else []))
    return grpo.train(
        job.model,
        ref,
        job.tokenizer,
        job.task.prompts,
        job.scorer,
        config,
        run,
        row=row,
        watch=job.watch,
        sample=job.sample,
        ranks=job.ranks,
    )


def run_dpo(row: dpo.PairLoss, job: Job, config, run: Run):
    ref, pairs = job.ref, job.pairs()
    job.ranks.spread(job.model, ref)
    return dpo.train(job.model, ref, pairs, config, run, row=row, ranks=job.ranks)


def run_kto(job: Job, config, run: Run):
    return kto.train(job.model, job.ref, job.pairs(), config, run)


def critic_free_loop(row: critic_free.CriticFree, about: str, **knobs) -> Loop:
    return Loop(grpo.GRPOConfig, "grpo", "sft", partial(run_critic_free, row), about, knobs)


def pair_loop(row: dpo.PairLoss, about: str) -> Loop:
    return Loop(dpo.DPOConfig, "dpo", "sft", partial(run_dpo, row), about)


LOOPS = {
    "pretrain": Loop(
        pretrain.PretrainConfig, "pretrain", "", run_pretrain, "next-token prediction from random weights"
    ),
    "sft": Loop(sft.SFTConfig, "sft", "pretrain", run_sft, "next-token prediction on demonstrations"),
    "reward_model": Loop(
        reward_model.RewardModelConfig, "reward_model", "sft", run_reward_model, "Bradley-Terry on noisy preferences"
    ),
    "ppo": Loop(ppo.PPOConfig, "ppo", "sft", run_ppo, "a critic, a clip, KL in the reward"),
    "grpo": critic_free_loop(critic_free.GRPO, "a group's mean and std as baseline, k3 in the loss"),
    "dr_grpo": critic_free_loop(critic_free.DR_GRPO, "GRPO without the std and the length"),
    "dapo": critic_free_loop(critic_free.DAPO, "clip-higher, token mean, dynamic sampling", clip_eps_high=0.28),
    "gspo": critic_free_loop(critic_free.GSPO, "one ratio a response"),
    "cispo": critic_free_loop(critic_free.CISPO, "clipped weights, no clipped gradient"),
    "rloo": critic_free_loop(critic_free.RLOO, "REINFORCE with the mean of the others as baseline"),
    "reinforce": critic_free_loop(critic_free.REINFORCE, "REINFORCE with the batch mean as baseline"),
    "rejection_sampling": critic_free_loop(critic_free.REJECTION, "SFT on the best of each group"),
    "rwr": critic_free_loop(critic_free.RWR, "SFT weighted by exp(score / beta)"),
    "dpo": pair_loop(dpo.DPO, "direct preference optimisation"),
    "ipo": pair_loop(dpo.IPO, "a squared target for the margin"),
    "cdpo": pair_loop(dpo.CDPO, "DPO with label smoothing"),
    "robust": pair_loop(dpo.ROBUST, "DPO unbiased under flipped labels"),
    "simpo": pair_loop(dpo.SIMPO, "averaged log-probabilities, no reference; on stories give --beta 2"),
    "orpo": pair_loop(dpo.ORPO, "SFT plus an odds ratio, no reference"),
    "kto": Loop(kto.KTOConfig, "kto", "sft", run_kto, "good and bad responses without pairs"),
}


def stored_weights(module, stage: str) -> Path | None:
    folder = DATA / "weights" / f"{module.__name__.rpartition('.')[2]}_{stage}"
    return folder if folder.is_dir() else None


def load_rule(spec: str) -> Rule:
    """path/to/rule.py:function, with the signature function(prompts, responses) -> one number a response."""
    path, _, name = spec.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"--reward: no file {path}")
    module_spec = importlib.util.spec_from_file_location("minirl_user_rule", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"--reward: {path} does not run: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, name, None)):
        raise ValueError(f"--reward: {path} has no function {name!r}")
    return getattr(module, name)
