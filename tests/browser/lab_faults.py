"""What a page must show, told by the stored notebook: pure functions over what `lab_page.see` brought back."""

import re

STREAMS = {"stdout": "application/vnd.jupyter.stdout", "stderr": "application/vnd.jupyter.stderr"}
ERROR = "application/vnd.jupyter.error"
WIDGET = "application/vnd.jupyter.widget-view+json"
RICH = (WIDGET, "text/html", "text/markdown", "image/png", "text/plain")  # the first that an output has is shown
# The text that stands where a widget could not be drawn, and the text version of rich things.
UNDRAWN = re.compile(
    r"\b[HV]Box\(children=|Error displaying widget|Loading widget|Model not found|<IPython\.core\.display\.\w+ object>"
    r"|<Figure size \S+ with \d+ Axes>|\b(FloatProgress|IntProgress|HTML)\(value="
)


def source(cell: dict) -> str:
    return "".join(cell["source"])


def wanted_kinds(cell: dict) -> list[str]:
    """The kinds of outputs in their order, texts that follow each other as one, as JupyterLab shows them."""
    kinds: list[str] = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            kind = STREAMS[output["name"]]
        elif output["output_type"] == "error":
            kind = ERROR
        else:
            kind = next(kind for kind in RICH if kind in output["data"])
        if kind not in STREAMS.values() or kinds[-1:] != [kind]:
            kinds.append(kind)
    return kinds


def formulas(markdown: str) -> int:
    """How many formulas a Markdown text has; dollars in code are none."""
    prose = re.sub(r"```.*?```|`[^`]*`|\\\$", "", markdown, flags=re.DOTALL)
    return len(re.findall(r"\$\$.+?\$\$|\$[^$]+\$", prose, flags=re.DOTALL))


def printed(cell: dict) -> str:
    return "".join("".join(output["text"]) for output in cell["outputs"] if output.get("name") == "stdout")


def last_line(text: str) -> str:
    return " ".join((text.strip().splitlines() or [""])[-1].split())


def code_faults(stored: dict, seen: dict, count: int) -> list[str]:
    wrong = []
    if seen["prompt"] != f"[{count}]:":
        wrong.append(f"has the number {seen['prompt']!r}, wanted [{count}]:")
    shown, wanted = [output["kind"] for output in seen["outputs"]], wanted_kinds(stored)
    texts = "\n".join(output["text"] for output in seen["outputs"])
    if ERROR in shown:
        return [*wrong, f"raised: {last_line(texts)}"]
    if shown != wanted:
        wrong.append(f"shows {shown}, the stored notebook {wanted}")
    if undrawn := UNDRAWN.search(texts):
        wrong.append(f"shows the text of something that was to be drawn: {undrawn[0]!r}")
    for output in seen["outputs"]:
        if output["kind"] == WIDGET and not output["widgets"]:
            wrong.append("shows no widget where one was sent")
        for bar in output["bars"]:
            if "success" not in bar["state"] or bar["width"] not in ("100%", ""):
                wrong.append(f"has a progress bar that did not finish: {bar}")
    lines = [output["text"] for output in seen["outputs"] if output["kind"] == STREAMS["stdout"]]
    if "nbval-ignore-output" not in stored["metadata"].get("tags", []) and shown == wanted:
        got, line = last_line("\n".join(lines)), last_line(printed(stored))
        if got != line:
            wrong.append(f"ends with {got!r}, the stored notebook with {line!r}")
    plots = sum(picture["plot"] for picture in seen["pictures"])
    if plots != wanted.count("image/png"):
        wrong.append(f"shows {plots} plots, wanted {wanted.count('image/png')}")
    return wrong


def markdown_faults(stored: dict, seen: dict) -> list[str]:
    wrong, text = [], source(stored)
    if seen["formulas"] != formulas(text):
        wrong.append(f"has {seen['formulas']} typeset formulas of {formulas(text)}")
    if seen["folds"] != text.count("<details>"):
        wrong.append(f"has {seen['folds']} folded answers of {text.count('<details>')}")
    if not seen["text"].strip():
        wrong.append("is empty")
    wrong += [f"has an image without alt text: {image['source']}" for image in seen["pictures"] if not image["alt"]]
    return wrong


def cell_faults(stored: dict, seen: dict, count: int) -> list[str]:
    kind = "code" if stored["cell_type"] == "code" else "markdown"
    if seen["kind"] != kind:
        return [f"is a {seen['kind']} cell, wanted {kind}"]
    wrong = code_faults(stored, seen, count) if kind == "code" else markdown_faults(stored, seen)
    wrong += [f"has a {thing} that is cut off at the right" for thing in seen["wide"]]
    wrong += [f"has a formula that MathJax cannot read: {text}" for text in seen["unread"]]
    for image in seen["pictures"]:
        if not image["wide"] or not image["shown"]:
            wrong.append(f"has a broken or hidden image: {image['source']}")
    return wrong


def faults(stored: list[dict], seen: list[dict]) -> list[str]:
    """Everything that the page does not show as the stored notebook has it: "cell 12 ('figure, axes = ...') ..."."""
    if len(stored) != len(seen):
        return [f"the page has {len(seen)} cells, the notebook {len(stored)}"]
    wrong, count = [], 0
    for number, (cell, shown) in enumerate(zip(stored, seen, strict=True)):
        count += cell["cell_type"] == "code"
        begin = source(cell).strip().partition("\n")[0][:60]
        wrong += [f"cell {number} ({begin!r}) {fault}" for fault in cell_faults(cell, shown, count)]
    return wrong
