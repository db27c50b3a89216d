"""One side of one workload in a process of its own, which does a unit of work when it is told to.

    PYTHON worker.py ours|peers WORKLOAD FOLDER

Lines of JSON come out, and a line that comes in means "go on":

    {"ready": {versions}, "peak": bytes}        everything is imported and loaded
    {"answers": {name: numbers}}                what this side computes, for the other one to agree with
    {"peak": bytes}                             before the first unit, which prepares things and is not timed
    {"seconds": s, "peak": bytes}               after each unit

or {"fault": sentence} at any point. In between the process sleeps, so that the other side has the machine to itself. This
file imports nothing of minirl: it also runs in a Python that has never heard of it.
"""

import gc
import importlib
import importlib.util
import json
import os
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    side, name, folder = sys.argv[1:4]
    sys.path[:] = [path for path in sys.path if not path or Path(path).resolve() != HERE]
    spoken = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes elsewhere

    def say(**message) -> None:
        print(json.dumps(message), file=spoken, flush=True)

    try:
        work(side, name, Path(folder), say)
    except Exception as error:
        traceback.print_exc()
        say(fault=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")


def work(side: str, name: str, folder: Path, say) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TRL_EXPERIMENTAL_SILENCE": "1"}
    spec = json.loads((folder / "spec.json").read_text())
    os.environ["OMP_NUM_THREADS"] = str(spec["threads"])
    import torch

    torch.set_num_threads(spec["threads"])
    now = time.process_time if spec["clock"] == "cpu" else time.perf_counter
    module = load(side)
    answers, units = module.WORKLOADS[name](folder, spec)
    say(ready=module.versions(), peak=peak_bytes())
    wait()
    say(answers=answers())
    wait()
    gc.collect()
    forget_peak()
    started = None

    def pause() -> None:
        nonlocal started
        took = None if started is None else now() - started
        say(peak=peak_bytes(), **({} if took is None else {"seconds": took}))
        wait()
        started = now()

    say(peak=peak_bytes())
    wait()
    units(pause)


def load(side: str):
    """minirl.bench.ours, or the file peers.py on its own."""
    if side == "ours":
        return importlib.import_module("minirl.bench.ours")
    spec = importlib.util.spec_from_file_location("peers", HERE / "peers.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["peers"] = module
    spec.loader.exec_module(module)
    return module


def wait() -> None:
    if not sys.stdin.readline():  # the other end has hung up: there is nothing to tidy
        os._exit(0)


def peak_bytes() -> int:
    """The most memory this process has held since it began, or since `forget_peak`.

    Linux keeps the figure with the process's memory. getrusage, the fallback, also counts what the parent held when it
    started this process, and cannot be set back.
    """
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # then the peak is that of the whole process


if __name__ == "__main__":
    main()
