"""`python -m minirl bench`: the table, and the JSON."""

import argparse
import os
import platform
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from minirl.bench.measure import Fault, Python, Side, Verdict, compare, installed, processes, verdict
from minirl.bench.workloads import PROCESSES, SIZES, WARM_UP, WORKLOADS, write_folder
from minirl.checkpoint import write_json
from minirl.types import check_knob

NEEDED = "pip install trl transformers, in a Python of its own if you like: --peer-python PATH"
NEEDED_FOR_PPO = "pip install --no-deps --target DIR trl==1.12.0, the last with PPO, and --ppo-path DIR"
BUSY = 0.7  # load average, as a share of the cores, above which times are not to be trusted
PROCESS_PAIRS = 5  # at most: a new process takes seconds, and varies little


@dataclass
class Row:
    name: str
    size: str
    ours: Side | None = None
    theirs: Side | None = None
    verdict: Verdict | None = None
    refused: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=[*SIZES, "both"], default="both", help="1.1M or 0.14M parameters (both)")
    parser.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(WORKLOADS)} (all)")
    parser.add_argument("--pairs", type=int, default=9, help=f"timed units a side, after {WARM_UP} that are not (9)")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16: both sides under autocast")
    parser.add_argument("--threads", type=int, default=2, help="of each side (2)")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu, with one thread: a busy machine")
    parser.add_argument("--peer-python", metavar="PATH", help="the Python that has transformers and TRL (this one)")
    parser.add_argument("--ppo-python", metavar="PATH", help="the Python that has a TRL with PPO (the peer's)")
    parser.add_argument("--ppo-path", metavar="DIR", help="a folder with trl 1.12, put first on that Python's path")
    parser.add_argument("--out", type=Path, help="write everything to this JSON file")


def run(args: argparse.Namespace) -> int:
    """Measure and print. 0, or 1 where a workload was refused because the two sides did not agree."""
    check_knob("--pairs", args.pairs, 1)
    check_knob("--threads", args.threads, 1)
    if args.clock == "cpu" and args.threads > 1:
        raise ValueError(f"--clock: cpu adds the seconds of all threads and wants --threads 1, got {args.threads}")
    names = chosen(args.only)
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    print(f"{machine()}, {args.threads} threads, {args.dtype}, {args.clock} clock; load average {load:.2f}")
    if load > BUSY * cores:
        print(
            f"WARNING: {load:.2f} on {cores} cores: something else is running, and the times below are its times too."
        )
    peers = find_peers(args, names)
    rows = []
    sizes = list(SIZES) if args.model == "both" else [args.model]
    print(f"\n{HEADER}\n{'-' * len(HEADER)}")
    for size in sizes:
        units = 1 + WARM_UP + args.pairs + 1  # preparations end with one, and a trainer must not run out
        with tempfile.TemporaryDirectory(prefix="minirl_bench_") as folder:
            knobs = {"threads": args.threads, "clock": args.clock, "dtype": args.dtype}
            write_folder(Path(folder), size, units=units, **knobs)
            for name in names:
                if name in PROCESSES and (args.dtype == "bf16" or size != sizes[0]):
                    continue  # a process that starts knows no model and no dtype
                rows.append(measured(name, size, Path(folder), peers.get(name), args))
                print(line(rows[-1]), flush=True)
    print_legend(rows)
    if args.out:
        settings = {"threads": args.threads, "dtype": args.dtype, "clock": args.clock, "pairs": args.pairs}
        record = {"machine": machine(), "cores": cores, "load_average": load} | settings
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, record | {"workloads": [as_json(row) for row in rows]})
    return 1 if any(row.refused for row in rows) else 0


def chosen(only: str | None) -> list[str]:
    names = list(WORKLOADS) if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in WORKLOADS:
            raise ValueError(f"--only: wanted some of {', '.join(WORKLOADS)}, got {name!r}")
    return names


def find_peers(args: argparse.Namespace, names: list[str]) -> dict[str, Python]:
    """The Python that can do the peer's side, for each workload that has one. Says what is missing."""
    general = Python(args.peer_python or sys.executable)
    ppo = Python(args.ppo_python or general.executable, args.ppo_path)
    found = {python: installed(python) for python in {general, ppo}}
    peers, missing = {}, {}
    for name in names:
        need = "trl" if name in PROCESSES else WORKLOADS[name].peer
        python = ppo if need == "trl.experimental.ppo" else general
        if {need, "transformers", "torch"} <= found[python].keys():
            peers[name] = python
        else:
            missing[name] = NEEDED_FOR_PPO if python == ppo and need != "trl" else NEEDED
    for python in dict.fromkeys(peers.values()):
        print(
            f"peer: {', '.join(f'{package} {version}' for package, version in found[python].items() if '.' not in package)}"
        )
    for how in dict.fromkeys(missing.values()):
        print(f"our side alone for {', '.join(name for name in missing if missing[name] == how)}. For theirs: {how}")
    return peers


def measured(name: str, size: str, folder: Path, peer: Python | None, args: argparse.Namespace) -> Row:
    row = Row(name, size)
    try:
        if name in PROCESSES:
            pairs = min(args.pairs, PROCESS_PAIRS)
            row.ours, row.theirs = processes(name, folder, peer, pairs, threads=args.threads, clock=args.clock)
        else:
            row.ours, row.theirs = compare(name, folder, peer, args.pairs)
    except Fault as fault:
        row.refused = str(fault)
    if row.theirs is not None:
        row.verdict = verdict(row.ours, row.theirs, WORKLOADS[name], size)
    return row


COLUMNS = (
    "workload",
    "model",
    "ours ms",
    "peer ms",
    "ratio",
    "quartiles",
    "minima",
    "must",
    "aim",
    "MB ours",
    "MB peer",
)
WIDTHS = (18, 5, 8, 8, 6, 11, 6, 4, 4, 11, 11)
HEADER = "  ".join(
    f"{column:<{w}}" if i < 2 else f"{column:>{w}}" for i, (column, w) in enumerate(zip(COLUMNS, WIDTHS, strict=True))
)


def line(row: Row) -> str:
    if row.refused:
        return f"{row.name:<18}  {row.size:<5}  refused: {row.refused}"
    cells = [row.name, "" if row.name in PROCESSES else row.size, milliseconds(row.ours), milliseconds(row.theirs)]
    v = row.verdict
    if v is None:
        cells += [""] * 5
    else:
        low, high = v.quartiles
        cells += [f"{v.ratio:.2f}", f"{low:.2f}-{high:.2f}", f"{v.minima:.2f}"]
        cells += ["" if goal is None else f"{goal:g}" for goal in (v.must, v.aim)]
    cells += [megabytes(row.ours), megabytes(row.theirs)]
    text = "  ".join(
        f"{cell:<{w}}" if i < 2 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(cells, WIDTHS, strict=True))
    )
    return f"{text}  {'' if v is None else v.words}".rstrip()


def milliseconds(side: Side | None) -> str:
    return "" if side is None else f"{statistics.median(side.seconds) * 1e3:.1f}"


def megabytes(side: Side | None) -> str:
    if side is None:
        return ""
    grown = f" +{(side.peak - side.before) / 1e6:.0f}" if side.before else ""
    return f"{side.peak / 1e6:.0f}{grown}"


def print_legend(rows: list[Row]) -> None:
    print(
        "\nms: median of a unit. ratio: peer / ours in the same turn, the median and the quartiles; minima: shortest unit"
    )
    print("against shortest. MB: the most memory the process held while it worked, and how far it grew for that.")
    judged = [row.verdict for row in rows if row.verdict is not None and row.verdict.must is not None]
    if judged:
        print(f"{sum(v.ratio >= v.must for v in judged)} of {len(judged)} goals (must) reached.")
    for name in dict.fromkeys(row.name for row in rows):
        print(f"  {name:<18} {WORKLOADS[name].about}")


def as_json(row: Row) -> dict:
    found = {"name": row.name, "model": None if row.name in PROCESSES else row.size, "refused": row.refused or None}
    for which, side in (("ours", row.ours), ("peer", row.theirs)):
        if side is not None and not row.refused:
            sizes = {"peak_bytes": side.peak, "bytes_before": side.before or None}
            found[which] = {"seconds": [round(s, 6) for s in side.seconds], **sizes, "versions": side.versions}
    if row.verdict is not None:
        v = row.verdict
        numbers = {"ratio": v.ratio, "low": v.quartiles[0], "high": v.quartiles[1], "minima": v.minima}
        found |= {key: round(value, 4) for key, value in numbers.items()} | {"must": v.must, "aim": v.aim}
    return found


def machine() -> str:
    """The processor's name, the number of cores and the system."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"
