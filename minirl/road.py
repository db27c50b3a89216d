"""The whole road on a laptop, from random weights to aligned, in both worlds: `python -m minirl`.

stories      pretrain -> SFT -> reward model -> best-of-16, PPO, PPO without KL, DPO, GRPO
digit sums   pretrain -> SFT -> GRPO from right and wrong alone
"""

import contextlib
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from minirl.disk import alone_in, write_json
from minirl.files import read_json
from minirl.model import PolicyWithValue, RewardModel, Transformer, summed
from minirl.pretrained import save_pretrained
from minirl.rollout import (
    Scorer,
    best_of,
    best_of_kl_bound,
    model_scorer,
    preference_pairs,
    responses_text,
    roll_out,
    rule_scorer,
    sequence_kl,
)
from minirl.run import Run
from minirl.samples import write_samples
from minirl.tasks import digit_sum, stories
from minirl.train import dpo, grpo, ppo, pretrain, reward_model, sft
from minirl.train.critic_free import GRPO, GRPO_KL_IN_REWARD
from minirl.train.settings import DIGIT_SUM, PREFERENCE_PAIRS, STORIES, tiny_transformer
from minirl.types import PreferenceBatch, Rollout

EVALUATED = 512  # responses behind every number of the tables
BEST_OF = 16
CHECKPOINTS = 10  # of a stage: what a kill costs is a tenth of it


@dataclass
class Walk:
    """Where the road writes, how long its stages may be, whether it goes on, and what the clock said of each stage."""

    out: Path
    seed: int = 0
    device: str = "cpu"
    quick: bool = False
    resume: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def settings(self, config, **changes):
        """A stage's settings with this walk's seed, shrunk to a few steps when it is a quick one."""
        steps = min(3, config.steps) if self.quick else config.steps
        return replace(config, seed=self.seed, steps=steps, **changes)

    def count(self, n: int) -> int:
        return min(n, 32) if self.quick else n

    @contextlib.contextmanager
    def stage(self, name: str, config=None) -> Iterator[Run]:
        """One stage: a Run in a folder of its own, its seconds, and a line for the reader.

        Of a walk that goes on, a stage that was done is loaded from its last checkpoint: the Run has no steps left.
        """
        start, folder = time.perf_counter(), self.out / name
        yield Run(
            folder,
            config={} if config is None else asdict(config),
            resume=self.resume,
            checkpoint_every=0 if config is None else max(1, config.steps // CHECKPOINTS),
            keep=1,
            name=f"  {name}",
        )
        clock = time.perf_counter() - start
        self.seconds[name] = max(clock, sum(seconds_of_steps(folder)))  # which were made before, where it goes on
        print(f"  {name:<28}{self.seconds[name]:6.1f} s", flush=True)

    def generator(self, offset: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + offset)


def seconds_of_steps(folder: Path) -> list[float]:
    timings = folder / "timings.jsonl"
    return [json.loads(line)["seconds"] for line in timings.read_text().splitlines()] if timings.exists() else []


def walk(out: Path, *, seed: int = 0, device: str = "cpu", quick: bool = False, resume: bool = False) -> dict:
    """Both worlds, all stages. Writes models, metrics and results.json under `out` and returns the results.

    resume: go on with the walk that `out` holds, to the same results, bit for bit.
    ValueError: `out` holds a walk and `resume` is not set, or one with another seed or another length; another process is
    at work there.
    """
    w = Walk(Path(out), seed, device, quick, resume)
    with alone_in(w.out):
        begin(w)
        print("Stories: a model learns to write, then to please a reader\nwhose taste it knows only from comparisons.")
        story_results = walk_stories(w)
        print("Digit sums: a model learns, from right and wrong alone, to work a sum out before it answers.")
        digit_results = walk_digits(w)
        results = {
            "seed": seed,
            "quick": quick,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "stories": story_results,
            "digit_sum": digit_results,
            "seconds": {name: round(s, 1) for name, s in w.seconds.items()},
        }
        write_json(w.out / "results.json", results)
        return results


def begin(w: Walk) -> None:
    """Writes down what walk this is, so that none goes on as another one."""
    ours, path = {"seed": w.seed, "quick": w.quick}, w.out / "walk.json"
    if path.exists():
        if not w.resume:
            raise ValueError(f"--out: {w.out} holds a walk; add --resume to go on with it, or choose another folder")
        for name, value in read_json(path).items():
            if value != ours.get(name):
                raise ValueError(f"--resume: {w.out} was begun with {name} = {value}, not {ours.get(name)}")
    write_json(path, ours)


def walk_stories(w: Walk) -> dict:
    tokenizer = stories.tokenizer()
    torch.manual_seed(w.seed)
    model = Transformer(tiny_transformer(tokenizer.vocab_size)).to(w.device)
    gold = rule_scorer(stories.gold, tokenizer)

    config = w.settings(STORIES["pretrain"])
    with w.stage("stories_pretrain", config) as run:
        pretrain.train(model, tokenizer, stories.pretraining_examples, config, run)
    pretrained = copy.deepcopy(model)

    config = w.settings(STORIES["sft"])
    with w.stage("stories_sft", config) as run:
        sft.train(model, tokenizer, stories.demonstrations, config, run)
    ref = copy.deepcopy(model).requires_grad_(False)  # everything below starts from here and is kept close to it

    config = w.settings(STORIES["reward_model"])
    with w.stage("stories_reward_model", config) as run:
        data = labelled_pairs(ref, w.count(PREFERENCE_PAIRS), w.generator(1))
        held_out = labelled_pairs(ref, w.count(1000), w.generator(2))
        judge = RewardModel(copy.deepcopy(ref).requires_grad_(True), summed)
        reward_model.train(judge, data, config, run)
    judge.requires_grad_(False)
    proxy = model_scorer(judge)

    policies = {"pretrained": pretrained, "SFT": ref}

    config = w.settings(STORIES["ppo"])
    with w.stage("stories_ppo", config) as run:
        actor = PolicyWithValue(copy_of(ref))
        ppo.train(actor, ref, tokenizer, stories.prompts, proxy, config, run, watch=gold)
        policies["PPO"] = actor.policy

    config = w.settings(STORIES["ppo"], kl_coef=0.0, kl_target=None)
    with w.stage("stories_ppo_without_kl", config) as run:
        actor = PolicyWithValue(copy_of(ref))
        ppo.train(actor, ref, tokenizer, stories.prompts, proxy, config, run, watch=gold)
        policies["PPO, no KL"] = actor.policy

    config = w.settings(STORIES["dpo"])
    with w.stage("stories_dpo", config) as run:
        policies["DPO"] = dpo.train(copy_of(ref), ref, data, config, run)

    config = w.settings(STORIES["grpo"])
    with w.stage("stories_grpo", config) as run:
        policies["GRPO"] = grpo.train(
            copy_of(ref), ref, tokenizer, stories.prompts, proxy, config, run, row=GRPO_KL_IN_REWARD, watch=gold
        )

    rows, samples = {}, {}
    with w.stage("stories_evaluation"):
        for name, policy in policies.items():
            texts, rollout = story_rollout(w, policy, w.count(EVALUATED), 1)
            rows[name] = measured(policy, ref, texts, rollout, gold, proxy)
            samples[name] = list(zip(texts[:3], responses_text(rollout[:3], tokenizer), strict=True))
        texts, rollout = story_rollout(w, ref, w.count(EVALUATED) // 2, BEST_OF)
        best = best_of(rollout, proxy(texts, rollout), BEST_OF)
        rows[f"best of {BEST_OF}"] = measured(ref, ref, texts[::BEST_OF], best, gold, proxy) | {"kl": None}
        save_pretrained(policies["PPO"], tokenizer, w.out / "stories_ppo" / "final")
        write_samples(
            w.out / "samples_stories.json",
            {name: policies[name] for name in ("SFT", "PPO", "PPO, no KL")},
            tokenizer,
            stories.prompts,
            proxy,
            max_new_tokens=stories.MAX_NEW_TOKENS,
            judge=judge,
            watch=gold,
            seed=w.seed,
        )
    return {
        "rows": rows,
        "samples": samples,
        "reward_model_accuracy": float(reward_model.evaluate(judge, held_out)["accuracy"]),
    }


def labelled_pairs(model: Transformer, n: int, generator: torch.Generator) -> PreferenceBatch:
    """n pairs of stories by the model, as the hidden labeller prefers them."""
    tokenizer = stories.tokenizer()
    texts, rollout = roll_out(
        model,
        tokenizer,
        stories.prompts(n, generator),
        max_new_tokens=stories.MAX_NEW_TOKENS,
        group_size=2,
        generator=generator,
    )
    gold = rule_scorer(stories.gold, tokenizer)(texts, rollout)
    return preference_pairs(rollout, stories.label(gold[::2], gold[1::2], generator))


def copy_of(model: Transformer) -> Transformer:
    return copy.deepcopy(model).requires_grad_(True)


def story_rollout(w: Walk, policy: Transformer, n: int, group_size: int) -> tuple[list[str], Rollout]:
    generator = w.generator(3)  # the same prompts and the same noise for every policy
    return roll_out(
        policy,
        stories.tokenizer(),
        stories.prompts(n, generator),
        max_new_tokens=stories.MAX_NEW_TOKENS,
        group_size=group_size,
        generator=generator,
    )


def measured(
    policy: Transformer, ref: Transformer, texts: list[str], rollout: Rollout, gold: Scorer, proxy: Scorer
) -> dict[str, float]:
    return {
        "gold": float(gold(texts, rollout).mean()),
        "proxy": float(proxy(texts, rollout).mean()),
        "kl": float(sequence_kl(policy, ref, rollout).mean()),
        "length": float(rollout.mask.sum(1).float().mean()),
    }


def walk_digits(w: Walk) -> dict:
    tokenizer = digit_sum.tokenizer()
    torch.manual_seed(w.seed)
    model = Transformer(tiny_transformer(tokenizer.vocab_size)).to(w.device)

    config = w.settings(DIGIT_SUM["pretrain"])
    with w.stage("digits_pretrain", config) as run:
        pretrain.train(model, tokenizer, digit_sum.pretraining_examples, config, run)

    config = w.settings(DIGIT_SUM["sft"])
    with w.stage("digits_sft", config) as run:  # gives it a bad habit: answer at once
        sft.train(model, tokenizer, digit_sum.demonstrations, config, run)
    rows, samples = {}, {}
    rows["SFT"], samples["SFT"] = measured_digits(w, model)
    before = copy.deepcopy(model)

    config = w.settings(DIGIT_SUM["grpo"])
    with w.stage("digits_grpo", config) as run:
        rule = rule_scorer(digit_sum.score, tokenizer)
        grpo.train(model, None, tokenizer, digit_sum.prompts, rule, config, run, row=GRPO)
    rows["GRPO"], samples["GRPO"] = measured_digits(w, model)
    save_pretrained(model, tokenizer, w.out / "digits_grpo" / "final")
    write_samples(
        w.out / "samples_digit_sum.json",
        {"SFT": before, "GRPO": model},
        tokenizer,
        digit_sum.prompts,
        rule,
        max_new_tokens=digit_sum.MAX_NEW_TOKENS,
        seed=w.seed,
    )
    return {"rows": rows, "samples": samples}


def measured_digits(w: Walk, model: Transformer) -> tuple[dict[str, float], list[tuple[str, str]]]:
    tokenizer, generator = digit_sum.tokenizer(), w.generator(4)
    texts, rollout = roll_out(
        model,
        tokenizer,
        digit_sum.prompts(w.count(EVALUATED), generator),
        max_new_tokens=digit_sum.MAX_NEW_TOKENS,
        generator=generator,
    )
    answers = responses_text(rollout, tokenizer)
    numbers = {
        "accuracy": float(digit_sum.score(texts, answers).mean()),
        "worked": float(digit_sum.is_worked(texts, answers).mean()),
        "length": float(rollout.mask.sum(1).float().mean()),
    }
    return numbers, list(zip(texts[:3], answers[:3], strict=True))


def summary(results: dict) -> str:
    """The two tables and the samples, as text for a terminal."""
    told, digits = results["stories"], results["digit_sum"]
    seconds = results["seconds"]
    took = {
        "pretrained": seconds["stories_pretrain"],
        "SFT": seconds["stories_sft"],
        "PPO": seconds["stories_ppo"],
        "PPO, no KL": seconds["stories_ppo_without_kl"],
        "DPO": seconds["stories_dpo"],
        "GRPO": seconds["stories_grpo"],
    }
    quick = ["", "A quick walk, a few steps a stage: it shows that everything runs, not that anything is learned."]
    lines = [
        *(quick if results["quick"] else []),
        "",
        f"Stories. The reward model agrees with {told['reward_model_accuracy']:.0%} of held-out labels.",
        f"  {'':<14}{'gold':>8}{'proxy':>8}{'KL':>8}{'length':>8}{'seconds':>9}",
    ]
    for name, row in sorted(told["rows"].items(), key=lambda item: ORDER.index(item[0])):
        kl = f"< {best_of_kl_bound(BEST_OF):.2f}" if row["kl"] is None else f"{row['kl']:.2f}"
        clock = f"{took[name]:.1f}" if name in took else ""
        lines.append(f"  {name:<14}{row['gold']:>8.2f}{row['proxy']:>8.2f}{kl:>8}{row['length']:>8.1f}{clock:>9}")
    lines += [
        "  gold: what the hidden reader really likes. proxy: what the reward model",
        "  believes. KL: nats from SFT.",
        "",
        "Digit sums.",
        f"  {'':<14}{'accuracy':>9}{'worked':>8}{'length':>8}{'seconds':>9}",
    ]
    for name, stage in (("SFT", "digits_sft"), ("GRPO", "digits_grpo")):
        row = digits["rows"][name]
        lines.append(
            f"  {name:<14}{row['accuracy']:>9.2f}{row['worked']:>8.2f}{row['length']:>8.1f}{seconds[stage]:>9.1f}"
        )
    lines.append("")
    for name in ("pretrained", "SFT", "PPO", "PPO, no KL"):
        prompt, response = told["samples"][name][0]
        lines.append(f"  {name:<12}{prompt} | {response}")
    for name in ("SFT", "GRPO"):
        prompt, response = digits["samples"][name][0]
        lines.append(f"  {name:<12}{prompt}{response}")
    lines.append("  (Up to the colon: the running sums of the digits, modulo 10. After it: the answer.)")
    return "\n".join(lines)


ORDER = ["pretrained", "SFT", f"best of {BEST_OF}", "PPO", "GRPO", "DPO", "PPO, no KL"]


def folder_in(parent: Path, *, resume: bool) -> Path:
    """parent/road, or parent/road_2 and so on: a second walk never writes over the first. resume: the last that was begun."""
    last, folder, n = None, parent / "road", 2
    while folder.exists():
        last, folder, n = folder, parent / f"road_{n}", n + 1
    if resume and last is None:
        raise ValueError(f"--resume: no walk has begun in {parent}; name its folder with --out")
    return last if resume else folder
