"""The command line: `python -m minirl`, and `python -m minirl` with `train NAME`, `generate FOLDER` or `compare A B`."""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from minirl.signals import Ended, command_line, how_to_go_on, listening, several_processes, without_resume

MOST_THREADS = 4096
MOST_SEED = 2**40  # as minirl.train.knobs has it; a batch's own seed is a million times larger


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    args = build_parser(words).parse_args(words)
    args.words = words
    runs = args.command in (run_road, run_train, run_generate, run_compare)
    try:
        with listening() if runs else contextlib.nullcontext():
            os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # threads that wait let others work
            import torch

            if args.threads is None:
                args.threads = int(os.environ.get("OMP_NUM_THREADS", 1)) if several_processes() else 2
            if not 1 <= args.threads <= MOST_THREADS:
                raise ValueError(f"--threads: wanted 1 to {MOST_THREADS}, got {args.threads}")
            if not abs(getattr(args, "seed", 0)) <= MOST_SEED:
                raise ValueError(f"--seed: wanted -{MOST_SEED} to {MOST_SEED}, got {args.seed}")
            torch.set_num_threads(args.threads)
            check_device(args.device)
            code = args.command(args)
            sys.stdout.flush()
            return code
    except Ended as end:
        with contextlib.suppress(OSError):  # the terminal may be gone
            if os.environ.get("RANK", "0") != "0":
                return end.exit_code  # the first rank speaks for all
            again = how_to_go_on(args.words, args.command in (run_road, run_train))
            print(f"\nminirl: stopped {end.saved or 'at once'}. {again}", file=sys.stderr, flush=True)
        return end.exit_code
    except KeyboardInterrupt:
        print("\nminirl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has read enough, and Python must not try to write the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, ArithmeticError, OSError) as error:
        if args.traceback:
            raise
        print(f"minirl: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        from minirl.ranks import alone_again

        if not args.traceback and ("out of memory" in str(error) or "allocate memory" in str(error)):
            print(f"minirl: not enough memory: {str(error).splitlines()[0][:300]}", file=sys.stderr)
            return 2
        if args.traceback or not several_processes() or not alone_again(error):
            raise
        return 1


def build_parser(words: list[str] | None = None) -> argparse.ArgumentParser:
    """The parser of these words: a command they do not name has a line of help and no arguments, and what it needs is not
    imported. None: all of them."""

    def named(name: str) -> bool:
        return words is None or name in words

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--seed", type=int, default=0, help="same seed, same machine: the same numbers, bit for bit (0)"
    )
    common.add_argument("--device", default="cpu", help="cpu, cuda or mps (cpu)")
    common.add_argument(
        "--threads", type=int, help="CPU threads; results depend on their number (2; under torchrun OMP_NUM_THREADS)"
    )
    common.add_argument("--traceback", action="store_true", help="on an error, show where it came from")

    parser = argparse.ArgumentParser(
        prog="python -m minirl",
        description="Reinforcement learning for language models, from random weights to aligned.\n\n"
        "Without a command: the whole road in both worlds, in a few minutes on two CPU cores.",
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  python -m minirl                                             the whole road, with a report\n"
        "  python -m minirl --quick                                     the same road in a few steps, to see that it runs\n"
        "  python -m minirl train grpo --task digit_sum --out runs/g    one loop\n"
        "  python -m minirl train ppo --help                            all knobs of a loop\n",
    )
    parser.add_argument(
        "--out", type=Path, help="folder to write to (the first free one of runs/road, runs/road_2, ...)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of every stage: shows that it runs, not that it learns"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the walk in --out (the last in runs)")
    parser.set_defaults(command=run_road)

    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    train = commands.add_parser("train", help="run one training loop", description="Run one training loop.")
    loops = train.add_subparsers(title="loops", metavar="NAME", required=True, dest="name")
    if named("train"):
        from minirl.loops import LOOPS

        for name, loop in LOOPS.items():
            about = f"{name}: {loop.about}."
            parser_of_loop = loops.add_parser(name, help=loop.about, description=about, parents=[common])
            if named(name):
                add_loop(parser_of_loop, loop)

    generate = commands.add_parser("generate", help="let a saved model write", parents=[common])
    generate.add_argument("model", metavar="FOLDER", help="a model in the Hugging Face layout, such as OUT/final")
    generate.add_argument("--prompt", action="append", help="text to continue; may be given several times")
    generate.add_argument("-n", type=int, default=3, help="responses to each prompt (3)")
    generate.add_argument("--max-new-tokens", type=int, default=40)
    generate.add_argument("--temperature", type=float, default=1.0)
    generate.add_argument("--top-p", type=float, default=1.0)
    generate.set_defaults(command=run_generate)

    compare = commands.add_parser("compare", help="let two saved models answer the same prompts", parents=[common])
    if named("compare"):
        add_compare(compare)
    add_course(commands, named)
    return parser


def add_compare(compare: argparse.ArgumentParser) -> None:
    from minirl.loops import TASK_FORMS

    compare.add_argument("first", metavar="A", help="a model in the Hugging Face layout, such as OUT/final")
    compare.add_argument("second", metavar="B", help="another one")
    compare.add_argument("--task", default="stories", help=f"{TASK_FORMS} (stories)")
    compare.add_argument("--reward", help="rule.py:function or a reward model's folder (what the task is paid with)")
    compare.add_argument("-n", type=int, default=64, help="prompts (64)")
    compare.add_argument("--max-new-tokens", type=int, help="(what the task needs)")
    compare.add_argument("--temperature", type=float, default=1.0)
    compare.set_defaults(command=run_compare)


COURSE = {  # the commands of the side rooms, what a learner or a teacher does beside training: (module, its functions, help)
    "doctor": ("doctor.command", "add_arguments", "run", "what is probably wrong with a run, from its metrics"),
    "drill": ("drills.command", "add_drill_arguments", "run_drill", "a function to write; a judge names the mistake"),
    "interview": ("drills.command", "add_interview_arguments", "run_interview", "a few drills against the clock"),
    "quiz": ("cards.quiz", "add_arguments", "run", "interview questions, with spaced repetition"),
    "cards": ("cards.command", "add_arguments", "run", "the interview cards for Anki, or as pages to print"),
    "grade": ("drills.grading.command", "add_arguments", "run", "mark a folder of drill submissions"),
    "notebooks": ("drills.versions", "add_arguments", "run", "a student's and a solution's version of the notebooks"),
    "bench": ("bench.command", "add_arguments", "run", "how fast it is on a CPU, beside TRL"),
}


def add_course(commands, named: Callable[[str], bool]) -> None:
    for name, (room, add_arguments, run, about) in COURSE.items():
        parser = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        parser.add_argument("--traceback", action="store_true", help="on an error, show where it came from")
        if named(name):
            module = importlib.import_module(f"minirl.{room}")
            getattr(module, add_arguments)(parser)
            parser.set_defaults(command=getattr(module, run))


def check_device(name: str) -> None:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device: {name!r} cannot be used here ({reason})") from None


def add_loop(parser: argparse.ArgumentParser, loop) -> None:
    from minirl.launch import PREFERENCE_PAIRS, TASK_FORMS

    parser.add_argument("--task", default="stories", help=f"{TASK_FORMS} (stories)")
    parser.add_argument("--out", type=Path, required=True, help="folder for config, metrics, checkpoints and the model")
    parser.add_argument("--model", help="start from this folder in the Hugging Face layout (the task's stored weights)")
    parser.add_argument("--reward", help="rule.py:function or a reward model's folder (what the task is paid with)")
    parser.add_argument(
        "--lora",
        type=int,
        nargs="?",
        const=16,
        metavar="RANK",
        help="train corrections of this rank (16), not the weights",
    )
    parser.add_argument("--dtype", default="fp32", help="fp32 or bf16, of the weights; bf16 wants --lora (fp32)")
    parser.add_argument(
        "--recompute", action="store_true", help="less memory, a third more time: activation checkpointing"
    )
    parser.add_argument("--ops", default="torch", help="torch, or triton: our kernels for an NVIDIA GPU (torch)")
    if loop.settings in ("ppo", "grpo", "dpo"):
        parser.add_argument(
            "--shard",
            default="ddp",
            help="under torchrun, what a process holds: ddp, all; fsdp, a share of each layer (ddp)",
        )
    if loop.settings == "grpo":
        parser.add_argument("--rollouts", metavar="URL", help="a vLLM server that samples: see minirl/served.py")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    parser.add_argument("--checkpoint-every", type=int, default=10, metavar="STEPS", help="(10)")
    parser.add_argument("--keep", type=int, default=3, metavar="K", help="checkpoints to keep, the last K (3)")
    parser.add_argument(
        "--on-nonfinite",
        default="stop",
        metavar="WHAT",
        help="when a loss, gradient or statistic is NaN or infinite, a gradient's norm is above 1e8 or KL above 20 nats a "
        "token. stop: end, with the tensor, the likely causes and the last good checkpoint, weights untouched. back: "
        "return to that checkpoint with half the learning rate, at most 3 times, each kept in setbacks.json and counted in "
        "the metrics. Nothing is ever skipped (stop)",
    )
    if "temperature" in {field.name for field in fields(loop.config)}:
        parser.add_argument(
            "--top-p", type=float, default=1.0, help="only 1.0: training samples the whole distribution"
        )
    if loop.settings in ("reward_model", "dpo", "kto"):
        count = f"to learn from ({PREFERENCE_PAIRS})"
        parser.add_argument("--sampled-pairs", type=int, default=PREFERENCE_PAIRS, metavar="N", help=count)
        parser.add_argument("--pair-tokens", type=int, metavar="N", help="of their responses (what the task needs)")
    knobs = parser.add_argument_group("knobs", "Without one, the setting that was found for the task.")
    for field in fields(loop.config):
        if field.name != "seed":
            knobs.add_argument(f"--{field.name.replace('_', '-')}", type=number(field.type), metavar="N")
    parser.set_defaults(command=run_train)


def number(kind) -> type:
    """int or float: what a knob of this type reads."""
    return int if kind in (int, int | None) else float


def run_road(args) -> int:
    from minirl import road

    out = args.out or road.folder_in(Path("runs"), resume=args.resume)
    if args.out is None:
        args.words = [*args.words, "--out", str(out)]  # what goes on with it names it
    results = road.walk(out, seed=args.seed, device=args.device, quick=args.quick, resume=args.resume)
    print(road.summary(results))
    try:
        from minirl import show
    except ImportError:
        print("\nInstall matplotlib to get the figure as well.")
    else:
        print(f"\nFigure: {show.save_road(results, out)}")
    print(f"Report: {report_on(out, args.words)}")
    print("Next: notebooks/00_start_here.ipynb walks the same road in one page.")
    return 0


def run_train(args) -> int:
    from minirl.launch import LOOPS, PREFERENCE_PAIRS, train
    from minirl.ranks import join
    from minirl.rollout import check_whole_distribution

    check_whole_distribution(getattr(args, "top_p", 1.0))
    given = {field.name: getattr(args, field.name) for field in fields(LOOPS[args.name].config) if field.name != "seed"}
    ranks = join(getattr(args, "shard", "ddp"), args.device)
    final = train(
        args.name,
        ranks=ranks,
        rollouts=getattr(args, "rollouts", None),
        task=args.task,
        out=args.out,
        model=args.model,
        reward=args.reward,
        seed=args.seed,
        device=ranks.device if ranks.size > 1 else args.device,
        resume=args.resume,
        checkpoint_every=args.checkpoint_every,
        keep=args.keep,
        on_nonfinite=args.on_nonfinite,
        max_new_tokens=getattr(args, "pair_tokens", None),
        sampled_pairs=getattr(args, "sampled_pairs", PREFERENCE_PAIRS),
        lora=args.lora,
        dtype=args.dtype,
        recompute=args.recompute,
        ops=find_ops(args.ops, args.device),
        knobs={name: value for name, value in given.items() if value is not None},
    )
    if ranks.first:
        print(f"Model: {final}\nMetrics: {args.out / 'metrics.jsonl'}\nReport: {report_on(args.out, args.words)}")
    ranks.leave()
    return 0


def find_ops(name: str, device: str):
    """The table of that name, if it can be used on this device."""
    from minirl.ops import TORCH

    if name not in ("torch", "triton"):
        raise ValueError(f"--ops: wanted torch or triton, got {name!r}")
    if name == "torch":
        return TORCH
    try:
        from minirl.kernels import TRITON, check_machine

        check_machine(device)
    except (ImportError, ValueError) as error:
        raise ValueError(f"--ops triton: {error}") from None
    return TRITON


def report_on(out: Path, words: list[str]) -> Path:
    """Keep the command in the run's folder, and write its page. A run that was resumed is remade without stopping."""
    from minirl.disk import write_aside
    from minirl.report import write_report

    write_aside(out / "command.txt", (command_line(without_resume(words)) + "\n").encode())
    return write_report(out)


def run_generate(args) -> int:
    import torch

    from minirl.disk import check_sums
    from minirl.generate import generate
    from minirl.pretrained import load_pretrained
    from minirl.rollout import responses_text

    check_sums(args.model)
    model, tokenizer = load_pretrained(args.model)
    if tokenizer is None:
        raise ValueError(f"FOLDER: {args.model} has no tokenizer.json")
    prompts = args.prompt or ["Once upon a time"]
    rollout = generate(
        model.to(args.device),
        [tokenizer.encode(prompt) for prompt in prompts],
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        group_size=args.n,
        eos=tokenizer.eos_id,
        generator=torch.Generator().manual_seed(args.seed),
    )
    for index, text in zip(rollout.prompt_index.tolist(), responses_text(rollout, tokenizer), strict=True):
        print(f"{prompts[index]} | {text}")
    return 0


def run_compare(args) -> int:
    import torch

    from minirl.disk import check_sums
    from minirl.launch import Job, find_task
    from minirl.pretrained import load_pretrained
    from minirl.rollout import responses_text, roll_out
    from minirl.samples import win_rate

    if args.n < 2:
        raise ValueError(f"-n: wanted at least 2 prompts, got {args.n}")
    task, _ = find_task(args.task)
    jobs = []
    for name, folder in (("A", args.first), ("B", args.second)):
        check_sums(folder)
        model, tokenizer = load_pretrained(folder)
        if tokenizer is None:
            raise ValueError(f"{name}: {folder} has no tokenizer.json")
        jobs.append(Job(task, model.to(args.device), tokenizer, args.reward, args.seed, args.device))

    scores, answers = [], []
    for name, job, folder in zip("AB", jobs, (args.first, args.second), strict=True):
        generator = torch.Generator().manual_seed(args.seed)  # the same prompts and the same noise for both
        prompts, rollout = roll_out(
            job.model,
            job.tokenizer,
            task.prompts(args.n, generator),
            max_new_tokens=args.max_new_tokens or task.MAX_NEW_TOKENS,
            temperature=args.temperature,
            generator=generator,
        )
        scores.append(job.scorer(prompts, rollout).cpu())
        answers.append(responses_text(rollout, job.tokenizer))
        length = rollout.mask.sum(1).float().mean()
        print(f"{name}  mean score {scores[-1].mean():8.3f}   tokens {length:6.1f}   {folder}")
    rate, error = win_rate(*scores)
    print(f"B beats A on {rate:.1%} of {args.n} prompts, ties counted half (standard error {error:.1%}).")
    for row in range(min(3, args.n)):
        print(f"\n{prompts[row]}")
        for name, score, texts in zip("AB", scores, answers, strict=True):
            print(f"  {name} {score[row]:+8.3f} | {texts[row]}")
    return 0


if __name__ == "__main__":
    code = main()
    if several_processes():
        from minirl.ranks import exit_now

        exit_now(code)
    sys.exit(code)
