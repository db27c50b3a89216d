"""The learner's desk: which drills there are, what each asks for, and hints."""

import ast
import difflib
import inspect
import textwrap

from minirl.drills import (
    advantages,
    critic,
    decoding,
    groups,
    grpo,
    kept,
    kl,
    layers,
    logprobs,
    masking,
    network,
    pairs,
    policy,
    preference,
    rewards,
    scores,
    text,
    weighted,
)
from minirl.drills.bank import Case, Drill
from minirl.drills.display import as_text
from minirl.types import Tensor

CHAPTERS = {  # in the order of the course
    "Language models, and averages over their tokens": [network, layers, text, decoding, masking, logprobs],
    "KL, rewards and advantages": [kl, rewards, scores, advantages, groups],
    "Losses": [policy, critic, grpo, weighted, preference, pairs],
}
ROOMS = [room for rooms in CHAPTERS.values() for room in rooms]
ALIASES = {"attention": "naive_attention"}  # what one would call it
DRILLS = {drill.of.__name__: drill for room in ROOMS for drill in room.DRILLS}


def names() -> list[str]:
    """Every function with a drill."""
    return sorted(DRILLS)


def find(name: str) -> Drill:
    name = ALIASES.get(name, name) if isinstance(name, str) else str(name)
    if name not in DRILLS:
        first = str(name).partition("_")[0]
        near = [known for known in names() if known.partition("_")[0] == first]
        near += [known for known in difflib.get_close_matches(str(name), DRILLS) if known not in near]
        raise ValueError(
            f"name: wanted one of minirl.drills.names(), got {name!r}; near it: {', '.join(near) or 'none'}"
        )
    return DRILLS[name]


def drill(name: str) -> str:
    """What to write: the signature with its shapes, the formula, and how it will be judged. ValueError as in `check`."""
    of = find(name).of
    case = find(name).cases[0]
    judged = f"Judged as {called(find(name), case)}; other knobs may be left out."
    return f"{_without_bodies(of)}\n\n{judged}\ncheck({name!r}, yours) names the mistake; hint({name!r}, 1) helps."


def hint(name: str, n: int) -> str:
    """The n-th hint, from 1 on, each more direct than the one before. ValueError beyond the last."""
    hints = find(name).hints
    if not isinstance(n, int) or not 1 <= n <= len(hints):
        raise ValueError(f"n: wanted a hint in 1..{len(hints)} for {name}, got {n}")
    kept.note_hint(name, n)
    return as_text(hints[n - 1])


def _without_bodies(of) -> str:
    """The source of a function or a class up to the end of its docstring: what the library says, not how it does it."""
    source = textwrap.dedent(inspect.getsource(of))
    lines = source.splitlines()
    (tree,) = ast.parse(source).body

    def head(node) -> list[str]:
        first = node.body[0]
        documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        return lines[node.lineno - 1 : first.end_lineno if documented else first.lineno - 1]

    parts = head(tree)
    for node in tree.body if isinstance(tree, ast.ClassDef) else [tree]:
        if isinstance(node, ast.FunctionDef):
            dots = " " * (node.col_offset + 4) + "..."
            parts += [dots] if node is tree else ["", *head(node), dots]
    return "\n".join(parts)


# How a batch is written down


def called(drill: Drill, case: Case) -> str:
    """The call itself, e.g. gae(rewards, values, mask, gamma=0.9, lam=0.8)."""
    arguments = ", ".join([*case.inputs, *(f"{name}={value}" for name, value in case.knobs.items())])
    return drill.form or f"{drill.of.__name__}({arguments})"


def shapes(case: Case) -> str:
    def one(x) -> str:
        return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" if isinstance(x, Tensor) else str(x)

    return "\n".join(f"  {name}: {one(x)}" for name, x in (case.inputs | case.knobs).items())


def shown(x, digits: int = 3) -> str:
    """Numbers with at most so many decimals."""
    if isinstance(x, Case):
        return "\n".join(f"  {name} = {shown(value)}" for name, value in (x.inputs | x.knobs).items())
    if isinstance(x, Tensor):
        return shown(x.tolist(), digits)
    if isinstance(x, list):
        return f"[{', '.join(shown(entry, digits) for entry in x)}]"
    return f"{round(x, digits) + 0.0:.9g}" if isinstance(x, float) else str(x)


def shown_apart(x: Tensor, y: Tensor) -> tuple[str, str]:
    """Both with three decimals, or with eight where three do not tell them apart."""
    digits = 3 if shown(x) != shown(y) else 8
    return shown(x, digits), shown(y, digits)
