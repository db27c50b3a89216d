"""The API reference, from the source alone: signatures with their shapes as they are written, docstrings as they are laid out.

Nothing of minirl is imported, so that the reference costs a second and shows `Float[Tensor, "B T"]` and not its repr.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

from formulas import formula, leading

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minirl"
SECTIONS = {  # (page, title): modules, in the order of the house
    ("words", "Words and checks"): ["types"],
    ("parts", "What every algorithm is made of"): ["masking", "logprobs", "kl", "advantages", "rewards", "sampling"],
    ("losses", "Losses"): ["losses.policy", "losses.preference", "losses.correction"],
    ("model", "The model"): [
        "config",
        "model",
        "attention",
        "rotary",
        "lora",
        "tokenizer",
        "chat",
        "generate",
        "decoder",
        "ops",
    ],
    ("worlds", "Worlds"): [
        "tasks",
        "tasks.stories",
        "tasks.digit_sum",
        "tasks.addition",
        "tasks.countdown",
        "tasks.gsm8k",
        "exact",
    ],
    ("rollouts", "Rollouts and runs"): [
        "rollout",
        "samples",
        "run",
        "checkpoint",
        "pretrained",
        "adapters",
        "gguf_file",
        "layouts",
        "cost",
    ],
    ("loops", "Loops"): [
        "train.pretrain",
        "train.sft",
        "train.reward_model",
        "train.ppo",
        "train.grpo",
        "train.dpo",
        "train.kto",
        "train.critic_free",
        "train.cartpole",
        "train.optimizer",
        "train.memory",
        "loops",
        "ranks",
        "served",
        "road",
        "launch",
    ],
    ("kernels", "Kernels"): [
        "kernels",
        "kernels.logprobs",
        "kernels.head_losses",
        "kernels.heads",
        "kernels.policy",
        "kernels.advantages",
        "kernels.decoding",
        "kernels.sampling",
        "kernels.rmsnorm",
        "kernels.rope",
        "kernels.swiglu",
    ],
    ("rooms", "Side rooms"): ["drills", "cards", "doctor", "classic", "report", "show"],
}
INNER = {  # what the rooms above are made of; a side room is shown by what it hands on
    "__main__",
    "bench",
    "disk",
    "files",
    "guards",
    "shards",
    "signals",
    "train",
    "losses",
    "train.knobs",
    "train.settings",
    "kernels.device",
    "kernels.matmul",
    "kernels.online_softmax",
}


def pages() -> dict[str, str]:
    """{path under the stage: Markdown}: an index and one page a section."""
    found = {"api/index.md": index()}
    for (page, title), names in SECTIONS.items():
        found[f"api/{page}.md"] = "\n\n".join([f"# {title}", *map(module_part, names)])
    return found


def path_of(name: str) -> Path:
    path = PACKAGE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def documented() -> dict[str, str]:
    """{path from the root: page and anchor}, for links from notebooks."""
    return {
        path_of(name).relative_to(ROOT).as_posix(): f"api/{page}.md#{anchor(name)}"
        for (page, _), names in SECTIONS.items()
        for name in names
    }


def anchor(name: str) -> str:
    return "minirl-" + re.sub(r"[._]", "-", name)


def index() -> str:
    lines = [
        "# API reference",
        "",
        "Everything below is read from the source: signatures with the shapes that the tests enforce, docstrings with",
        "their formulas. Axis letters: B rows of a batch, T response positions, S prompt and response together,",
        "N preference pairs, V vocabulary, D width of the model.",
        "",
    ]
    for (page, title), names in SECTIONS.items():
        lines += [f"## {title}", ""]
        for name in names:
            first = first_line(ast.get_docstring(ast.parse(path_of(name).read_text("utf-8"))) or "")
            lines.append(f"- [`minirl.{name}`]({page}.md#{anchor(name)}): {markdown_line(first)}")
        lines.append("")
    return "\n".join([*lines, "```{toctree}", ":hidden:", "", *(page for page, _ in SECTIONS), "```", ""])


def first_line(docstring: str) -> str:
    sentence = re.match(r".*?(?<!et al)[.?!](?=\s|$)", " ".join(docstring.split("\n\n")[0].split()))
    return (sentence[0] if sentence else docstring.split("\n")[0]).rstrip(":")


def module_part(name: str) -> str:
    path = path_of(name)
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    about = prose(ast.get_docstring(tree) or "")
    parts = [f"({anchor(name)})=\n## minirl.{name}", "", f"```{{py:module}} minirl.{name}\n```", "", about, ""]
    shown = [(node, source, f"minirl.{name}") for node in tree.body if is_public(node)]
    shown += re_exported(tree)
    for node, text, module in shown:
        parts += [entry(node, text, module), ""]
    return "\n".join(parts)


def is_public(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")


def re_exported(tree: ast.Module) -> list[tuple[ast.AST, str, str]]:
    """The functions and classes that a package's __init__ hands on by __all__, where they are defined."""
    names = {
        element.value
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        for element in node.value.elts
    }
    found = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minirl."):
            path = path_of(node.module.removeprefix("minirl."))
            text = path.read_text("utf-8")
            wanted = {alias.name for alias in node.names if (alias.asname or alias.name) in names}
            found += [
                (item, text, node.module) for item in ast.parse(text).body if is_public(item) and item.name in wanted
            ]
    return found


def entry(node: ast.AST, source: str, module: str, kind: str = "") -> str:
    if isinstance(node, ast.ClassDef):
        return class_entry(node, source, module)
    kind = kind or "function"
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    options = [f":module: {module}"]
    options += [f":{mark}:" for mark in ("classmethod", "staticmethod") if mark in decorators]
    if kind == "method" and "property" in decorators:
        returns = [f":type: {annotation(node.returns)}"] if node.returns else []
        return directive("py:property", node.name, [*options, *returns], prose(ast.get_docstring(node) or ""))
    signature = f"{node.name}({arguments(node, bound=kind == 'method' and 'staticmethod' not in decorators)})"
    if node.returns:
        signature += f" -> {annotation(node.returns)}"
    return directive(f"py:{kind}", signature, options, prose(ast.get_docstring(node) or ""))


def class_entry(node: ast.ClassDef, source: str, module: str) -> str:
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and not item.target.id.startswith("_")]
    is_dataclass = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    made = next((item for item in methods if item.name == "__init__"), None)
    if is_dataclass:
        knobs = [
            f"{f.target.id}: {annotation(f.annotation)}" + (f" = {ast.unparse(f.value)}" if f.value else "")
            for f in fields
        ]
        signature = f"{node.name}({', '.join(knobs)})"
    else:
        signature = f"{node.name}({arguments(made, bound=True) if made else ''})"
    parts = [prose(ast.get_docstring(node) or "")]
    if made and ast.get_docstring(made):
        parts.append(prose(ast.get_docstring(made)))
    remarks = comments(source)
    if explained := [(f, remarks[f.lineno]) for f in fields if f.lineno in remarks]:
        parts.append("\n".join(f"`{f.target.id}`\n: {markdown_line(remark)}\n" for f, remark in explained))
    for item in methods:
        if not item.name.startswith("_") or (item.name == "__call__" and ast.get_docstring(item)):
            inner = entry(item, source, module, kind="method")
            parts.append(
                inner.replace(f"{{py:method}} {item.name}", f"{{py:method}} {node.name}.{item.name}").replace(
                    f"{{py:property}} {item.name}", f"{{py:property}} {node.name}.{item.name}"
                )
            )
    return directive("py:class", signature, [f":module: {module}"], "\n\n".join(part for part in parts if part))


def arguments(node: ast.FunctionDef, *, bound: bool) -> str:
    found = node.args
    if bound:
        first = found.posonlyargs or found.args
        if first and first[0].arg in ("self", "cls"):
            del first[0]
    return shapes(ast.unparse(found))


def annotation(node: ast.expr) -> str:
    return shapes(ast.unparse(node))


def shapes(text: str) -> str:
    """`Float[Tensor, ' B']` as `Float[Tensor, 'B']`: the space is for jaxtyping, and no reader needs it."""
    return re.sub(r"' (\w+)'", r"'\1'", text)


def comments(source: str) -> dict[int, str]:
    """{line: the comment at its end}."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip()
    }


def directive(name: str, argument: str, options: list[str], body: str) -> str:
    longest = max((len(run) for run in re.findall(r"^ *(`{3,})", body, re.M)), default=3)
    fence = "`" * (longest + 1)
    return "\n".join([f"{fence}{{{name}}} {argument}", *options, "", body, fence])


def prose(docstring: str) -> str:
    """A docstring as Markdown: paragraphs stay, indented blocks become formulas or stay as they are laid out."""
    parts = [f"```{{math}}\n{first}\n```"] if (first := leading(docstring.split("\n")[0])) else []
    for block in re.split(r"\n\s*\n", docstring.strip("\n")):
        lines = block.split("\n")
        while lines:  # a paragraph, then perhaps an indented block, without an empty line between
            count = next((i for i, line in enumerate(lines) if line.startswith("  ")), len(lines))
            if count:
                parts.append("\n".join(map(markdown_line, lines[:count])))
                lines = lines[count:]
            else:
                count = next((i for i, line in enumerate(lines) if not line.startswith("  ")), len(lines))
                parts.append(indented(lines[:count]))
                lines = lines[count:]
    return "\n\n".join(parts)


def indented(lines: list[str]) -> str:
    depth = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    lines = [line[depth:].rstrip() for line in lines]
    literal = "\n".join(["```text", *lines, "```"])
    found = formula(lines)
    return f"```{{math}}\n{found}\n```\n\n{literal}" if found else literal


def markdown_line(text: str) -> str:
    """Plain text as Markdown that reads the same; what stands in backticks stays code."""
    pieces = re.split(r"(`[^`]+`)", text)
    for i in range(0, len(pieces), 2):
        pieces[i] = re.sub(r"([\\*_{}\[\]<>#$~|`])", r"\\\1", pieces[i])
    shown = re.sub(r"^(\s*)(\d+)([.)])(?=\s)", r"\1\2\\\3", "".join(pieces))  # no list by accident
    return re.sub(r"^(\s*)([-+:])(?=\s)", r"\1\\\2", shown)
