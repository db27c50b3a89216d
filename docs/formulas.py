"""Docstrings write formulas in the code's own symbols; this makes TeX of them, and says None where a block is no formula."""

import re

LETTERS = {
    "eps": r"\epsilon",
    "gamma": r"\gamma",
    "lam": r"\lambda",
    "beta": r"\beta",
    "delta": r"\delta",
    "pi": r"\pi",
    "theta": r"\theta",
}
FUNCTIONS = {"exp": r"\exp", "log": r"\log", "min": r"\min", "max": r"\max", "sigmoid": r"\sigma"}
UPRIGHT = ("clip", "mean", "odds", "std", "variance", "softmax", "silu", "KL")
FUNCTIONS |= {name: rf"\operatorname{{{name}}}" for name in UPRIGHT}
FUNCTIONS |= {"sum": r"\sum"}
WORDS = {"of", "where", "in", "not", "and", "desirable", "detached", "for", "otherwise"}
KNOWN = {
    "margin",
    "values",
    "returns",
    "chosen",
    "rejected",
    "scores",
    "token",
    "weight",
    "gate",
    "up",
    "sqrt",
}
NAMES = {"k1": "k_1", "k2": "k_2", "k3": "k_3"}
SIGNS = {
    "*": r" \cdot ",
    "*=": r" \mathrel{\cdot}= ",
    "%": r"\%",
    "{": "{",
    "}": "}",
    ">=": r" \ge ",
    "<=": r" \le ",
    "||": r" \,\|\, ",
}
TOKEN = re.compile(r"\\sqrt|[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*(?:_\{[^}]*\})?|\d+(?:\.\d+)?|\s+|\*=|>=|<=|\|\||.")


def formula(lines: list[str]) -> str | None:
    """Lines such as `A_t = delta_t + gamma * lam * A_{t+1}` as one aligned TeX formula."""
    if not all(re.match(r"\w+\s*\*?=\s", line) for line in lines) or re.search(r'["#:`]|\.\.\.', "".join(lines)):
        return None
    rows = []
    for line in lines:
        # numbered remarks stand behind a gap: each a row of its own, so that a phone can show it
        rows += [tex(part).replace("=", "&=", 1) for part in re.split(r",?\s{3,}(?=\S)", align(line))]
    return "\\begin{aligned}\n" + " \\\\\n".join(rows) + "\n\\end{aligned}"


def leading(line: str) -> str | None:
    """The formula that a docstring begins with, as TeX: up to the first word of prose, colon, comma or full stop."""
    found, depth = "", 0
    for token in TOKEN.findall(line):
        if (token in ":,." and depth == 0) or (token[0].isalpha() and not is_symbol(token)):
            break
        depth += (token in "([") - (token in ")]")
        found += token
    found = found.strip()
    is_whole = (
        depth == 0 and re.search(r"[=+*/^]|^-|sum_", found) and not re.search(r"\*[,)]|[-=+*/@:;]$|[@:;#`]", found)
    )
    return tex(roots(found)) if is_whole and len(found) > 4 else None


def is_symbol(word: str) -> bool:
    stem, _, index = word.partition("_")
    known = len(word) == 1 or word in LETTERS or word in FUNCTIONS or word in NAMES or word in KNOWN
    return known or bool(index and (is_symbol(stem) or stem in ("kl", "ref")))


def roots(text: str) -> str:
    """sqrt(x) with its brackets turned to braces, which TOKEN keeps in one piece behind a name."""
    while "sqrt(" in text:
        start = text.index("sqrt(")
        depth, end = 1, start + 5
        while depth:
            depth += (text[end] == "(") - (text[end] == ")")
            end += 1
        text = f"{text[:start]}\\sqrt{{{text[start + 5 : end - 1]}}}{text[end:]}"
    return text


def align(line: str) -> str:
    """One space around the first sign of equality: the docstring's columns are no gaps."""
    return re.sub(r"\s*(\*?=)\s*", r" \1 ", line.strip(), count=1)


def tex(text: str) -> str:
    parts = []
    for token in TOKEN.findall(text):
        if token.isspace():
            parts.append(r" \quad " if len(token) > 1 else " ")
        elif token[0].isalpha():
            parts.append(name(token))
        else:
            parts.append(SIGNS.get(token, token))
    return "".join(parts).strip()


def name(word: str) -> str:
    if word in WORDS:
        return rf"\ \text{{{word}}}\ "
    if word in FUNCTIONS or word in NAMES:
        return FUNCTIONS.get(word) or NAMES[word]
    stem, _, index = word.partition("_")
    if index.startswith("{") or len(index) == 1:
        return f"{name(stem)}_{{{index.strip('{}')}}}"
    if index and (len(stem) == 1 or stem in LETTERS or stem == "sum"):
        below = LETTERS.get(index, r"\mathrm{" + index + "}")
        return f"{name(stem)}_{{{below}}}"
    if word in LETTERS or len(word) == 1:
        return LETTERS.get(word, word)
    escaped = word.replace("_", r"\_")
    return rf"\mathit{{{escaped}}}"
