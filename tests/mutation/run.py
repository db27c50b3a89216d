"""Which small changes to a module do its tests not notice? Mutants by mutmut's operators, judged by a runner of our own.

    python tests/mutation/run.py                    every module of the table below
    python tests/mutation/run.py kl losses/policy   some of them

No file of the library is touched: the mutant's source is handed to the import system in a forked process, which then
runs the module's own test file until a test fails. Rewrites survivors.csv and counts.csv for the modules that were run.
A survivor keeps the reason it has in survivors.csv; one without a reason makes the command fail.
"""

import csv
import gc
import importlib
import inspect
import os
import signal
import sys
import time
import types
from collections import Counter
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

try:
    import libcst as cst
    from libcst.metadata import MetadataWrapper, PositionProvider
    from mutmut.mutation.file_mutation import MutationVisitor
    from mutmut.mutation.mutators import mutation_operators
    from mutmut.mutation.pragma_handling import IgnoredCode
except ImportError:
    sys.exit("skipped: this needs mutmut, which the project does not depend on (pip install mutmut==3.8.1)")

import hypothesis
import pytest
from _pytest.runner import runtestprotocol

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SURVIVORS, COUNTS = HERE / "survivors.csv", HERE / "counts.csv"

TESTS = {
    "masking": "tests/test_masking.py",
    "logprobs": "tests/test_logprobs.py",
    "kl": "tests/test_kl.py",
    "advantages": "tests/test_advantages.py",
    "rewards": "tests/test_rewards.py",
    "losses/policy": "tests/losses/test_policy.py",
    "losses/preference": "tests/losses/test_preference.py",
    "types": "tests/test_types.py",
    "tokenizer": "tests/test_tokenizer.py",
    "checkpoint": "tests/test_checkpoint.py",
    "model": "tests/test_model.py",
}
LIBRARIES = ("torch", "F", "math", "re", "json", "os", "contextlib", "shutil", "hashlib", "random", "safetensors", "np")
PRELOAD = (
    "torch",
    "numpy",
    "hypothesis",
    "hypothesis.strategies",
    "jaxtyping",
    "beartype",
    "_pytest.assertion.rewrite",
)
TIMEOUT = 90  # seconds for a mutant that loops for ever; the slowest test file takes 20


def drop_statement(node: cst.Expr):
    """A call made for its effect, such as a check of the arguments, is left out."""
    if isinstance(node.value, cst.Call):
        yield cst.Pass()


def drop_method(node: cst.Call):
    """x.detach() becomes x, x.clamp(min=1) becomes x."""
    if isinstance(node.func, cst.Attribute):
        receiver = node.func.value
        if not (isinstance(receiver, cst.Name) and receiver.value in LIBRARIES):
            yield receiver


OPERATORS = [*mutation_operators, (cst.Expr, drop_statement), (cst.Call, drop_method)]


def mutants_of(source: str) -> list[tuple[int, str, str, str]]:
    """(line, function, mutation, source) of each mutant, in the order of the lines. Two ways to one text count once."""
    wrapper = MetadataWrapper(cst.parse_module(source))
    visitor = MutationVisitor(OPERATORS, IgnoredCode(set(), set(), set()))
    wrapper.visit(visitor)
    spans = wrapper.resolve(PositionProvider)
    functions = _functions(wrapper.module, spans)
    found, seen = [], {source}
    for mutation in visitor.mutations:
        text = wrapper.module.deep_replace(mutation.original_node, mutation.mutated_node).code
        if text not in seen:
            seen.add(text)
            line = spans[mutation.original_node].start.line
            inside = [name for first, last, name in functions if first <= line <= last]
            found.append((line, inside[-1] if inside else "(module)", _difference(source, text), text))
    return sorted(found, key=lambda mutant: mutant[:3])


def _functions(module: cst.Module, spans) -> list[tuple[int, int, str]]:
    found = []

    class Visitor(cst.CSTVisitor):
        def visit_FunctionDef(self, node):
            found.append((spans[node].start.line, spans[node].end.line, node.name.value))

    module.visit(Visitor())
    return found


def _difference(before: str, after: str) -> str:
    """The changed lines as `before -> after`."""
    old, new = before.splitlines(), after.splitlines()
    while old and new and old[0] == new[0]:
        del old[0], new[0]
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    return " -> ".join(" ".join(line.strip() for line in lines) for lines in (old, new))


class Judge:
    """A pytest plugin. With jobs: forks once a job after the collection, exchanges code and runs the tests till one fails."""

    def __init__(self, path: Path, function: str = "", jobs: list[tuple[int, str, str]] = (), pipe=None):
        self.path, self.function, self.jobs, self.pipe = path, function, jobs, pipe

    def pytest_collection_modifyitems(self, items):
        items.sort(key=lambda item: _distance(item, self.function))

    def pytest_runtestloop(self, session):
        if not self.jobs:
            return None
        module = next(x for x in list(sys.modules.values()) if getattr(x, "__file__", None) == str(self.path))
        compiled = partial(module.__spec__.loader.source_to_code, path=str(self.path))
        codes = _codes(compiled(self.path.read_bytes()))
        live = _live_functions(module)
        if self._run(session.items, live, {}):  # once as it is: what is slow the first time is then behind every fork
            raise RuntimeError("the tests have to pass before anything is mutated")
        gc.collect(), gc.freeze(), gc.disable()
        phases = [
            hypothesis.Phase.explicit,
            hypothesis.Phase.generate,
        ]  # a failure is enough, the smallest is not needed
        hypothesis.settings.register_profile("mutants", hypothesis.settings.default, phases=phases)
        hypothesis.settings.load_profile("mutants")
        for number, function, source in self.jobs:
            changed = {name: code for name, code in _codes(compiled(source.encode())).items() if code != codes[name]}
            if changed.keys() <= live.keys():  # otherwise it changes a default, a constant or a class: judged afresh
                items = sorted(session.items, key=lambda item: _distance(item, function))
                self.pipe.write(f"{number} {_forked(lambda: self._run(items, live, changed))}\n")  # noqa: B023
                self.pipe.flush()
        return True

    def _run(self, items, live, changed) -> int:
        for name, code in changed.items():
            for function in live[name]:
                function.__code__ = code
        for item, following in zip(items, [*items[1:], None], strict=True):
            if any(report.failed for report in runtestprotocol(item, nextitem=following, log=False)):
                return 1
        return 0


def _distance(item, function: str) -> tuple[bool, bool]:
    """The tests whose name holds the function come first, the generated ones last: most mutants then fall at once."""
    return getattr(item.function, "is_hypothesis_test", False), function not in item.nodeid


def _codes(module: types.CodeType) -> dict[str, types.CodeType]:
    """The code of the functions and methods of a module by name, and of the module itself without them."""
    found, bodies, outside = {}, [module], []
    for body in bodies:
        inner = [x for x in body.co_consts if isinstance(x, types.CodeType)]
        outside.append((body.co_code, body.co_names, [x for x in body.co_consts if x not in inner]))
        for code in inner:
            if code.co_flags & inspect.CO_NEWLOCALS:
                found[code.co_qualname] = code
            else:
                bodies.append(code)
    return found | {"outside": outside}


def _live_functions(module) -> dict[str, list[types.FunctionType]]:
    """The functions of a module as written, found inside the wrappers that check their shapes."""
    found = {}
    for x in gc.get_objects():
        if (
            type(x) is types.FunctionType
            and x.__globals__ is vars(module)
            and x.__code__.co_filename == module.__file__
        ):
            found.setdefault(x.__code__.co_qualname, []).append(x)
    return found


def _forked(act) -> str:
    """ "survived", "killed", "broken" (the tests cannot even be collected) or "timeout"."""
    child = os.fork()
    if child == 0:
        signal.alarm(TIMEOUT)
        status = 3
        try:
            status = int(act())
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "timeout" if os.WTERMSIG(status) == signal.SIGALRM else "killed"
    return {0: "survived", 1: "killed"}.get(os.WEXITSTATUS(status), "broken")


def _pytest(tests: str, plugin: Judge) -> int:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1), os.dup2(quiet, 2)
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-o", "addopts=", "-m", "not nightly and not gpu"]
    return pytest.main([*options, "--assert=plain", "--tb=native", *tests.split()], plugins=[plugin])


def _afresh(path: Path, tests: str, function: str = "", source: str | None = None) -> str:
    """The verdict of a process that imports the library and collects the tests with the mutant in place."""

    def act():
        if source is not None:
            _import_instead(path, source)
        return _pytest(tests, Judge(path, function))

    return _forked(act)


def _at_once(path: Path, tests: str, jobs: list[tuple[int, str, str]]) -> dict[int, str]:
    """The verdicts on the mutants that change nothing but the inside of functions, from one collection of the tests."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        status = 3
        try:
            status = int(_pytest(tests, Judge(path, "", jobs, os.fdopen(writer, "w"))))
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as lines:
        verdicts = {int(number): verdict for number, verdict in (line.split() for line in lines)}
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{tests}: the collected tests could not be run on mutants")
    return verdicts


def _import_instead(path: Path, source: str) -> None:
    """Whoever imports `path` in this process gets `source`, and no stored bytecode is read or written for it."""
    get_data, path_stats = SourceFileLoader.get_data, SourceFileLoader.path_stats

    def mutated_data(self, wanted):
        return source.encode() if wanted == str(path) else get_data(self, wanted)

    def no_stats(self, wanted):
        if wanted == str(path):
            raise OSError
        return path_stats(self, wanted)

    SourceFileLoader.get_data, SourceFileLoader.path_stats = mutated_data, no_stats


def run(module: str) -> tuple[dict, list[dict]]:
    path, tests, start = ROOT / "minirl" / f"{module}.py", TESTS[module], time.monotonic()
    if _afresh(path, tests) != "survived":
        sys.exit(f"{tests} has to pass before anything is mutated")
    mutants = mutants_of(path.read_text())
    first = _at_once(path, tests, [(n, function, source) for n, (_, function, _, source) in enumerate(mutants)])
    verdicts, survivors = Counter(), []
    for n, (line, function, mutation, source) in enumerate(mutants):
        verdict = first.get(n, "survived")
        if verdict == "survived":
            verdict = _afresh(path, tests, function, source)
        verdicts[verdict] += 1
        if verdict == "survived":
            survivors.append({"module": module, "line": line, "function": function, "mutation": mutation})
            print(f"{module}:{line} {function}: {mutation}", flush=True)
    counts = {"module": module, "mutants": verdicts.total()}
    counts |= {verdict: verdicts[verdict] for verdict in ("killed", "broken", "timeout", "survived")}
    counts["seconds"] = round(time.monotonic() - start)
    print(counts, f"{len(mutants) - len(first)} judged afresh", flush=True)
    return counts, survivors


def _read(path: Path) -> list[dict]:
    return list(csv.DictReader(path.open(newline=""))) if path.exists() else []


def _write(path: Path, rows: list[dict], columns: list[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(modules: list[str]) -> int:
    if unknown := set(modules) - set(TESTS):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; wanted any of {', '.join(TESTS)}")
    os.chdir(ROOT)
    for name in PRELOAD:
        importlib.import_module(name)
    order = list(TESTS)
    for module in modules or order:
        counts, survivors = run(module)
        before = _read(SURVIVORS)
        reasons = {(row["module"], row["function"], row["mutation"]): row["reason"] for row in before}
        for row in survivors:
            row["reason"] = reasons.get((row["module"], row["function"], row["mutation"]), "")
        rows = [row for row in before if row["module"] != module] + survivors
        rows.sort(key=lambda row: (order.index(row["module"]), int(row["line"]), row["mutation"]))
        _write(SURVIVORS, rows, ["module", "line", "function", "mutation", "reason"])
        table = [row for row in _read(COUNTS) if row["module"] != module] + [counts]
        table.sort(key=lambda row: order.index(row["module"]))
        _write(COUNTS, table, list(counts))
    unexplained = [row for row in _read(SURVIVORS) if not row["reason"]]
    for row in unexplained:
        print(f"no reason yet: minirl/{row['module']}.py:{row['line']} {row['mutation']}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
