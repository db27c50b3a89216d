"""`python -m minirl train NAME`: which loop, on which world, from which model, for which reward, and what is left in OUT.

Each NAME is an entry of LOOPS. Its knobs are the fields of the loop's config, and the command line offers them all.
"""

import contextlib
import copy
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from tqdm import tqdm

from minirl.adapters import save_adapter
from minirl.checkpoint import newest_step
from minirl.disk import alone_in, check_sums, naming, replacing, sums_of, write_sums
from minirl.files import parse_json, read_text
from minirl.guards import SETBACKS, NonFiniteError, setbacks, write_setbacks
from minirl.loops import LOOPS, PREFERENCE_PAIRS, TASK_FORMS, TASKS, Job, Loop, stored_weights
from minirl.lora import add_lora, base_of, merged
from minirl.model import PolicyWithValue, RewardModel, Transformer
from minirl.ops import TORCH, Ops
from minirl.pretrained import load_pretrained, save_pretrained
from minirl.ranks import ALONE, Ranks
from minirl.rollout import model_scorer
from minirl.run import Run
from minirl.samples import write_samples
from minirl.served import check_server, sampler
from minirl.shards import whole_state
from minirl.tasks import gsm8k
from minirl.tokenizer import Tokenizer
from minirl.train.settings import tiny_transformer
from minirl.types import check_knob, check_precision, check_size, check_texts

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def train(name: str, *, out: Path, resume: bool, on_nonfinite: str = "stop", ranks: Ranks = ALONE, **given) -> Path:
    """Run one loop and write OUT; returns the folder of the trained model. `given`: what `attempt` takes.

    With on_nonfinite "back", a step that is not finite sends the run back to its last checkpoint with half the learning
    rate, at most SETBACKS times. Each is a line of OUT/setbacks.json and a number in the metrics from there on.
    """
    if on_nonfinite not in ("stop", "back"):
        raise ValueError(f"--on-nonfinite: wanted stop or back, got {on_nonfinite!r}")
    if on_nonfinite == "back" and ranks.size > 1:
        raise ValueError("--on-nonfinite back: one process only; several stop, and --resume goes on")
    check_size("--keep", given.get("keep", 3))
    with alone_in(Path(out)) if ranks.first else contextlib.nullcontext():
        while True:
            try:
                return attempt(name, out=Path(out), resume=resume, ranks=ranks, **given)
            except NonFiniteError as error:
                if on_nonfinite == "stop" or not error.step:
                    again = ". To go on from there with half the learning rate: --resume --on-nonfinite back"
                    raise NonFiniteError(f"{error}{again if error.step else ''}") from error
                go_back(Path(out), error)
                resume = True


def go_back(out: Path, error: NonFiniteError) -> None:
    """Write down that the run broke and goes back. The next attempt, or the next start after a kill, reads it."""
    found, back_to = setbacks(out), newest_step(out / "checkpoints")
    if len(found) == SETBACKS:
        raise NonFiniteError(
            f"{error}. It went back {SETBACKS} times, with half the learning rate each, and broke again."
        )
    write_setbacks(out, [*found, {"step": error.step, "back_to": back_to, "why": str(error)}])
    tqdm.write(f"minirl: {error}. Going back to step {back_to} with half the learning rate.", file=sys.stderr)


def halvings(out: Path, resume: bool) -> int:
    """How often the run went back before the checkpoint it stands at. What came later comes again by itself."""
    found = setbacks(out)
    stand = newest_step(out / "checkpoints") if found else 0
    kept = [setback for setback in found if resume and setback["back_to"] <= stand]
    if kept != found:
        write_setbacks(out, kept)
    return len(kept)


def attempt(
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
    keep: int = 3,
    ranks: Ranks = ALONE,
    rollouts: str | None = None,
) -> Path:
    """Run one loop from its start or its last checkpoint, and write what it leaves: final/, and with LoRA adapter/ too."""
    loop = LOOPS[name]
    check_savings(loop, lora, dtype, device)
    check_scaling(loop, lora, ranks, rollouts)
    module, settings = find_task(task)
    start, tokenizer = starting_model(module, loop, model, seed, DTYPES[dtype], device)
    if lora is not None:
        torch.manual_seed(seed)
        add_lora(start, rank=lora)
    start.recompute, start.ops = recompute, ops
    served = None
    if rollouts is not None:
        check_server(rollouts, merged(start), tokenizer, out / "serving", ranks)
        served = sampler(rollouts, out / "serving", ranks=ranks, export=exporter(start, ranks))
        knobs = {"correction": 2.0} | knobs
    job = Job(module, start, tokenizer, reward, seed, device, max_new_tokens, sampled_pairs, ranks, served)
    config = settings.get(loop.settings, loop.config())
    if loop.settings not in settings and "max_new_tokens" in {f.name for f in fields(config)}:
        config = replace(config, max_new_tokens=module.MAX_NEW_TOKENS)
    config = replace(config, seed=seed, **(loop.knobs | knobs))
    kind = device if ranks is ALONE else device.partition(":")[0]  # each rank has a GPU of its own
    recorded = {"loop": name, "task": task, "model": model, "reward": reward, "device": kind} | asdict(config)
    check_knob("sampled_pairs", sampled_pairs, 2)
    recorded |= {
        "pair_tokens": max_new_tokens,
        "sampled_pairs": sampled_pairs,
        "lora": lora,
        "dtype": dtype,
        "recompute": recompute,
    }
    if rollouts is not None:
        recorded["rollouts"] = rollouts
    run = Run(out, config=recorded, resume=resume, checkpoint_every=checkpoint_every, keep=keep, name=name, ranks=ranks)
    if setbacks_so_far := ranks.most(halvings(out, resume) if ranks.first else 0):
        config = replace(config, lr=config.lr * 0.5**setbacks_so_far)
        run.constants = {"setbacks": float(setbacks_so_far)}
    with run.telling_where():
        trained = loop.run(job, config, run)
    trained = unsharded(trained, module, loop, model, seed, DTYPES[dtype], device, ranks)
    if not ranks.first:
        ranks.barrier()
        return out / "final"
    with naming(out):
        if lora is not None:
            with replacing(out / "adapter") as aside:
                save_adapter(start, aside, base_model=model or "")
            before = base_of(start)
            trained = without_lora(trained)
        else:
            before, _ = starting_model(module, loop, model, seed, DTYPES[dtype], device)  # again: training changed it
        # The old list goes first: killed from here on, there is none, and not a wrong one.
        sums_of(out / "final").unlink(missing_ok=True)
        save_pretrained(trained, tokenizer, out / "final")
        write_sums(out / "final")
        show_samples(replace(job, model=before, ranks=ALONE), trained, config, out / "samples.json")
    ranks.barrier()
    return out / "final"


def check_scaling(loop: Loop, lora: int | None, ranks: Ranks, rollouts: str | None) -> None:
    if (ranks.size > 1 or ranks.shard == "fsdp") and loop.settings not in ("ppo", "grpo", "dpo"):
        raise ValueError(
            f"torchrun: {loop.settings} trains in one process; ppo, grpo, dpo and their kin train in several"
        )
    if ranks.shard == "fsdp" and lora is not None:
        raise ValueError(
            "--shard fsdp: shares all weights, and --lora trains a few of them; use --shard ddp with --lora"
        )
    if rollouts is not None and loop.settings != "grpo":
        raise ValueError(f"--rollouts: a server samples for grpo and its kin, not for {loop.settings}")


def exporter(start: Transformer, ranks: Ranks):
    """A function that makes a plain whole model of the one that is trained: what a server reads."""
    if ranks.shard != "fsdp":
        return merged
    plain = copy.deepcopy(start).cpu()

    def export(model: Transformer) -> Transformer:
        plain.load_state_dict(whole_state(model))
        return plain

    return export


def unsharded(trained, module, loop: Loop, model: str | None, seed: int, dtype, device: str, ranks: Ranks):
    """The trained model, whole; on every rank, since each holds a share."""
    if ranks.shard != "fsdp":
        return trained
    whole, _ = starting_model(module, loop, model, seed, dtype, device)
    whole = PolicyWithValue(whole) if isinstance(trained, PolicyWithValue) else whole
    whole.load_state_dict(whole_state(trained))
    return whole


def check_savings(loop: Loop, lora: int | None, dtype: str, device: str) -> None:
    if lora is not None and loop.settings not in ("ppo", "grpo", "dpo", "kto", "sft"):
        raise ValueError(f"--lora: {loop.settings} trains every weight; LoRA is for sft, ppo, grpo, dpo and their kin")
    if dtype not in DTYPES:
        raise ValueError(f"--dtype: wanted {' or '.join(DTYPES)}, got {dtype!r}")
    check_precision("--dtype", DTYPES[dtype], device)
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
    for number, line in enumerate(read_text(Path(name)).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append(parse_json(line)["prompt"])
            check_texts(prompts=found[-1:])
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
        check_sums(folder)
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
