"""`python -m minirl train NAME`: which loop, on which world, from which model, for which reward.

Each NAME is an entry of LOOPS. Its knobs are the fields of the loop's config, and the command line offers them all.
"""

import copy
import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

from minirl.adapters import save_adapter
from minirl.lora import adapted, add_lora, base_of, merged
from minirl.model import PolicyWithValue, RewardModel, Transformer, summed
from minirl.ops import TORCH, Ops
from minirl.pretrained import load_pretrained, load_reward_model, save_pretrained
from minirl.rollout import Rule, Scorer, join, model_scorer, preference_pairs, roll_out, rule_scorer
from minirl.run import Run
from minirl.samples import write_samples
from minirl.tasks import DATA, addition, countdown, digit_sum, gsm8k, stories
from minirl.tokenizer import Tokenizer
from minirl.train import critic_free, dpo, grpo, kto, ppo, pretrain, reward_model, sft
from minirl.train.settings import ADDITION, COUNTDOWN, DIGIT_SUM, PREFERENCE_PAIRS, STORIES, tiny_transformer
from minirl.types import PreferenceBatch, check_knob

TASKS = {
    "stories": (stories, STORIES),
    "digit_sum": (digit_sum, DIGIT_SUM),
    "addition": (addition, ADDITION),
    "countdown": (countdown, COUNTDOWN),
}
PROMPTS_AT_ONCE = 32  # of a file, whose prompts may be long and whose model may be large
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
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
            return model_scorer(judge)
        if self.reward is not None:
            return rule_scorer(load_rule(self.reward), self.tokenizer)
        if getattr(self.task, "score", None) is None:
            raise ValueError(
                "--reward: this task has no score of its own; name rule.py:function or a reward model's folder"
            )
        return rule_scorer(self.task.score, self.tokenizer)

    @property
    def judge(self) -> RewardModel | None:
        """The reward model that pays, None where a rule does."""
        if self.reward is None:
            folder = stored_weights(self.task, "reward_model")
        else:
            folder = None if ".py:" in self.reward else Path(self.reward)
        if folder is None:
            return None
        judge, tokenizer = load_reward_model(folder)
        if tokenizer is not None and tokenizer.vocab_size != self.tokenizer.vocab_size:
            raise ValueError(
                f"--reward: {folder} has {tokenizer.vocab_size} tokens, the policy {self.tokenizer.vocab_size}"
            )
        return judge.to(self.device).requires_grad_(False)

    @property
    def watch(self) -> Scorer | None:
        gold = getattr(self.task, "gold", None)
        return None if gold is None else rule_scorer(gold, self.tokenizer)

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


def run_pretrain(job: Job, config, run: Run):
    return pretrain.train(job.model, job.tokenizer, job.examples("pretraining_examples"), config, run)


def run_sft(job: Job, config, run: Run):
    return sft.train(job.model, job.tokenizer, job.examples("demonstrations"), config, run)


def run_reward_model(job: Job, config, run: Run):
    judge = RewardModel(copy.deepcopy(job.model), summed).to(job.device)
    return reward_model.train(judge, job.pairs(), config, run)


def run_ppo(job: Job, config, run: Run):
    actor = PolicyWithValue(job.model)
    return ppo.train(actor, job.ref, job.tokenizer, job.task.prompts, job.scorer, config, run, watch=job.watch)


def run_critic_free(row: critic_free.CriticFree, job: Job, config, run: Run):
    needs_ref = config.kl_coef > 0 or config.max_kl is not None
    return grpo.train(
        job.model,
        job.ref if needs_ref else None,
        job.tokenizer,
        job.task.prompts,
        job.scorer,
        config,
        run,
        row=row,
        watch=job.watch,
    )


def run_dpo(row: dpo.PairLoss, job: Job, config, run: Run):
    return dpo.train(job.model, job.ref, job.pairs(), config, run, row=row)


def run_kto(job: Job, config, run: Run):
    return kto.train(job.model, job.ref, job.pairs(), config, run)


def critic_free_loop(row: critic_free.CriticFree, about: str) -> Loop:
    return Loop(grpo.GRPOConfig, "grpo", "sft", partial(run_critic_free, row), about)


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
    "dapo": critic_free_loop(critic_free.DAPO, "clip-higher, token mean, dynamic sampling"),
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
    "simpo": pair_loop(dpo.SIMPO, "averaged log-probabilities, no reference"),
    "orpo": pair_loop(dpo.ORPO, "SFT plus an odds ratio, no reference"),
    "kto": Loop(kto.KTOConfig, "kto", "sft", run_kto, "good and bad responses without pairs"),
}


def train(
    name: str,
    *,
    task: str,
    out: Path,
    model: str | None,
    reward: str | None,
    seed: int,
    device: str,
    resume: bool,
    checkpoint_every: int,
    knobs: dict,
    max_new_tokens: int | None = None,
    sampled_pairs: int = PREFERENCE_PAIRS,
    lora: int | None = None,
    dtype: str = "fp32",
    recompute: bool = False,
    ops: Ops = TORCH,
) -> Path:
    """Run one loop and write OUT; returns the folder of the trained model, and with LoRA writes OUT/adapter as well."""
    loop = LOOPS[name]
    check_savings(loop, lora, dtype)
    module, settings = find_task(task)
    start, tokenizer = starting_model(module, loop, model, seed, DTYPES[dtype], device)
    if lora is not None:
        torch.manual_seed(seed)
        add_lora(start, rank=lora)
    start.recompute, start.ops = recompute, ops
    job = Job(module, start, tokenizer, reward, seed, device, max_new_tokens, sampled_pairs)
    config = settings.get(loop.settings, loop.config())
    if loop.settings not in settings and "max_new_tokens" in {f.name for f in fields(config)}:
        config = replace(config, max_new_tokens=module.MAX_NEW_TOKENS)
    config = replace(config, seed=seed, **knobs)
    recorded = {"loop": name, "task": task, "model": model, "reward": reward, "device": device} | asdict(config)
    check_knob("sampled_pairs", sampled_pairs, 2)
    recorded |= {
        "pair_tokens": max_new_tokens,
        "sampled_pairs": sampled_pairs,
        "lora": lora,
        "dtype": dtype,
        "recompute": recompute,
    }
    run = Run(out, config=recorded, resume=resume, checkpoint_every=checkpoint_every, name=name)
    trained = loop.run(job, config, run)
    if lora is not None:
        save_adapter(start, Path(out) / "adapter", base_model=model or "")
        before = base_of(start)
        trained = without_lora(trained)
    else:
        before, _ = starting_model(module, loop, model, seed, DTYPES[dtype], device)  # once more: training changed it
    save_pretrained(trained, tokenizer, Path(out) / "final")
    show_samples(replace(job, model=before), trained, config, Path(out) / "samples.json")
    return Path(out) / "final"


def check_savings(loop: Loop, lora: int | None, dtype: str) -> None:
    if lora is not None and loop.settings not in ("ppo", "grpo", "dpo", "kto", "sft"):
        raise ValueError(f"--lora: {loop.settings} trains every weight; LoRA is for sft, ppo, grpo, dpo and their kin")
    if dtype not in DTYPES:
        raise ValueError(f"--dtype: wanted {' or '.join(DTYPES)}, got {dtype!r}")
    if dtype != "fp32" and lora is None:
        raise ValueError(
            f"--dtype: {dtype} weights cannot learn by themselves: an update below 1/256 of a weight is rounded away. "
            f"Add --lora 16: the weights stay as they are, and the corrections learn in float32"
        )


def without_lora(trained: Transformer | PolicyWithValue) -> Transformer | PolicyWithValue:
    """The same model with its corrections folded in."""
    if isinstance(trained, Transformer):
        return merged(trained)
    actor = PolicyWithValue(merged(trained.policy))
    actor.value_head = trained.value_head
    return actor


def show_samples(job: Job, trained: Transformer | PolicyWithValue | RewardModel, config, path: Path) -> None:
    """What the starting model and the trained one write; for a reward model, what it makes of the starting model's text."""
    models = {"before training": job.model}
    if isinstance(trained, RewardModel):
        models, judge = {"the model it judges": job.model}, trained
    else:
        models["after training"] = trained.policy if isinstance(trained, PolicyWithValue) else trained
        judge = job.judge
    write_samples(
        path,
        models,
        job.tokenizer,
        job.task.prompts,
        job.scorer if judge is None else model_scorer(judge),
        max_new_tokens=getattr(config, "max_new_tokens", job.length),
        temperature=getattr(config, "temperature", 1.0),
        judge=judge,
        watch=job.watch,
        seed=job.seed,
    )


def find_task(name: str) -> tuple[ModuleType | SimpleNamespace, dict]:
    """A world of the library by its name, GSM8K from the file or folder named behind a colon, or prompts from a .jsonl file
    with a "prompt" in each line."""
    if name in TASKS:
        return TASKS[name]
    world, _, path = name.partition(":")
    if world == "gsm8k":
        if not path:
            raise ValueError("--task: gsm8k wants its .jsonl file, or the folder with train.jsonl: gsm8k:PATH")
        return gsm8k.task(path), {}
    if not name.endswith(".jsonl"):
        raise ValueError(f"--task: wanted {TASK_FORMS}, got {name!r}")
    if not Path(name).is_file():
        raise ValueError(f"--task: no file {name}")
    found = []
    for number, line in enumerate(Path(name).read_text().splitlines(), start=1):
        try:
            found.append(str(json.loads(line)["prompt"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'--task: {name}, line {number}: wanted {{"prompt": "..."}} ({error})') from None
    if not found:
        raise ValueError(f"--task: {name} holds no prompts")

    def prompts(n: int, generator: torch.Generator) -> list[str]:
        return [found[i] for i in torch.randint(len(found), (n,), generator=generator).tolist()]

    return SimpleNamespace(prompts=prompts, MAX_NEW_TOKENS=24, __name__=name), {}


def starting_model(
    module, loop: Loop, folder: str | None, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Transformer, Tokenizer]:
    """--model, or the weights stored for this task, or a new model where the loop starts from nothing."""
    if folder is not None:
        model, tokenizer = load_pretrained(folder, dtype=dtype, device=device)
        if tokenizer is None:
            raise ValueError(f"--model: {folder} has no tokenizer.json")
        return model, tokenizer
    stored = stored_weights(module, loop.start)
    if stored is not None:
        return load_pretrained(stored, dtype=dtype, device=device)
    if loop.start:
        raise ValueError("--model: this task has no stored weights; name a model's folder")
    if not hasattr(module, "tokenizer"):
        raise ValueError("--model: this task has no tokenizer of its own; name a model's folder")
    tokenizer = module.tokenizer()
    torch.manual_seed(seed)
    return Transformer(tiny_transformer(tokenizer.vocab_size)).to(device=device, dtype=dtype), tokenizer


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
    except Exception as error:
        raise ValueError(f"--reward: {path} does not run: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, name, None)):
        raise ValueError(f"--reward: {path} has no function {name!r}")
    return getattr(module, name)
