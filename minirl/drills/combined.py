"""Two mistakes at once: what differs between a right version and each of two wrong ones is put into one function.

The three are compared token by token, as a version-control system merges two edits of one file. Where both edits touch
the same tokens there is no such function, and that pair is passed over.
"""

import ast
import difflib
import functools
import inspect
import io
import itertools
import textwrap
import tokenize
from collections.abc import Callable, Iterator

from minirl.drills.bank import RIGHT, Mutant

Token = tuple[int, str]
Edit = tuple[int, int, tuple[Token, ...]]


def pairs_of(mutants: list[Mutant]) -> Iterator[tuple[Mutant, Mutant, Callable]]:
    """Every two of the mutants of one function that can be planted together, and the function that has both."""
    for first, second in itertools.combinations(mutants, 2):
        function = planted(first, second)
        if function is not None:
            yield first, second, function


@functools.cache
def planted(first: Mutant, second: Mutant) -> Callable | None:
    base = RIGHT.get(first.of)
    if base is None:
        return None
    merged = merged_tokens(tokens_of(base), edits_of(first), edits_of(second))
    if merged is None:
        return None
    names = vars(inspect.getmodule(base)) | vars(inspect.getmodule(first.function))
    names |= vars(inspect.getmodule(second.function))
    try:
        exec(compile(tokenize.untokenize(merged), f"<{first.name} and {second.name}>", "exec"), names)
    except SyntaxError:  # two edits that are sound alone and make no sense side by side
        return None
    return names["version"]


@functools.cache
def edits_of(mutant: Mutant) -> tuple[Edit, ...]:
    """Where a wrong version differs from the right one: (start, end, the tokens that stand there instead)."""
    return edits_between(tokens_of(RIGHT[mutant.of]), tokens_of(mutant.function))


@functools.cache
def tokens_of(version: Callable) -> tuple[Token, ...]:
    """The tokens of a function or class, without decorators, docstrings, annotations and comments, as `version`."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(version))).body
    tree.name, tree.decorator_list = "version", []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
    text = io.StringIO(ast.unparse(tree) + "\n")
    return tuple((token.type, token.string) for token in tokenize.generate_tokens(text.readline))


def merged_tokens(base: tuple[Token, ...], first: tuple[Edit, ...], second: tuple[Edit, ...]) -> list[Token] | None:
    """base with the edits of both, or None where they meet."""
    edits = sorted([*first, *second], key=lambda edit: edit[:2])
    for (start, end, _), (next_start, next_end, _) in itertools.pairwise(edits):
        if next_start < end or (start, end) == (next_start, next_end):
            return None
    merged = list(base)
    for start, end, tokens in reversed(edits):
        merged[start:end] = tokens
    return merged


def edits_between(base: tuple[Token, ...], version: tuple[Token, ...]) -> tuple[Edit, ...]:
    matcher = difflib.SequenceMatcher(None, base, version, autojunk=False)
    return tuple((i, j, version[k:m]) for kind, i, j, k, m in matcher.get_opcodes() if kind != "equal")
