"""The pages that are made from what is stored: golden vectors, conformance, benchmarks, interview, the list of lessons."""

import json
import re
import statistics
from pathlib import Path

from api import markdown_line

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def minutes_of(path: Path) -> int:
    """The reading time that a notebook states: the first `In N minutes` of its first cell."""
    first = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])
    return int(re.search(r"In (\d+) minutes", first)[1])


def title_of(path: Path) -> str:
    first = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])
    return re.search(r"^# (.+)$", first, re.M)[1]


def lessons() -> str:
    """The lessons in order: what each is about in the README's words, and how long it takes."""
    readme = (ROOT / "README.md").read_text("utf-8")
    idea_of = dict(re.findall(r"^\| \[`(\w+)`\]\(notebooks/\w+\.ipynb\) \| (.+?) \|", readme, re.M))
    rows = []
    for path in NOTEBOOKS:
        idea = idea_of.get(path.stem, title_of(path))
        rows.append(f"- [{path.stem}](notebooks/{path.stem}.ipynb), {minutes_of(path)} minutes\\\n  {idea}")
    return "\n".join(rows)


def toctree() -> str:
    return "\n".join(f"notebooks/{path.stem}" for path in NOTEBOOKS)


def golden_table() -> str:
    functions = json.loads((ROOT / "data/golden/golden.json").read_text("utf-8"))["functions"]
    rows = ["| function | which of the usual variants | cases | gradients |", "| --- | --- | ---: | ---: |"]
    for name, function in functions.items():
        cases = function["vectors"]
        slopes = sum(len(case.get("gradients", {})) for case in cases)
        rows.append(f"| `{name}` | {cell(function['convention'])} | {len(cases)} | {slopes} |")
    cases = sum(len(function["vectors"]) for function in functions.values())
    return f"{len(functions)} functions, {cases} cases.\n\n" + "\n".join(rows)


def cell(text: str) -> str:
    return markdown_line(" ".join(str(text).split()))


def golden_readme() -> str:
    return body_of(ROOT / "data/golden/README.md")


def body_of(path: Path) -> str:
    """A Markdown file without its title."""
    return re.sub(r"\A# .*\n+", "", path.read_text("utf-8"))


def conformance() -> str:
    text = body_of(ROOT / "tests/conformance/README.md")
    return text.replace("`RESULTS.md` holds what came out.", "[What came out](#results) stands below.")


def conformance_results() -> str:
    text = body_of(ROOT / "tests/conformance/RESULTS.md")
    return re.sub(r"^## (\S+)", r"### \1", text, flags=re.M)


def benchmarks(folder: Path | None = None) -> str:
    """One section a file of `folder` (data/bench); what is not there is said to be missing, not guessed."""
    stored = sorted((folder or ROOT / "data/bench").glob("*.json"))
    parts = []
    reports = [(path, json.loads(path.read_text("utf-8"))) for path in stored]
    on_cpu = [(path, report) for path, report in reports if "workloads" in report]
    on_gpu = [(path, report) for path, report in reports if "workloads" not in report]
    parts.append("## Against TRL, on a CPU\n")
    parts += [cpu_section(path, report) for path, report in on_cpu] or [
        "No measurement is stored yet. Take your own, on a quiet machine, in about ten minutes:\n\n"
        "```bash\npython -m minirl bench --peer-python PATH --out cpu.json\n```\n\n"
        "`PATH` is a Python that has TRL and transformers. The command first checks that both sides compute the same, and "
        "gives no ratio where they do not."
    ]
    parts.append("## Kernels, on a GPU\n")
    parts += [gpu_section(path, report) for path, report in on_gpu] or [
        "No measurement is stored yet: the kernels pass their tests in Triton's interpreter, and their times on a GPU are "
        "unknown. With an NVIDIA GPU of compute capability 8.0 or newer:\n\n"
        "```bash\npython tests/bench/gpu_kernels.py --out gpu_kernels.json\n```"
    ]
    return "\n\n".join(parts)


def cpu_section(path: Path, report: dict) -> str:
    about = [
        f"`data/bench/{path.name}`: {cell(report['machine'])}; {report['cores']} cores, {report['threads']} threads, "
        f"{report['dtype']}, {report['clock']} clock, load average {report['load_average']:.2f} at the start, "
        f"{report['pairs']} pairs of runs."
    ]
    rows = [
        "| workload | model | ours, ms | TRL, ms | ratio | quartiles | of the shortest | wanted |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    refused = []
    for row in report["workloads"]:
        if row.get("refused"):
            refused.append(f"- `{row['name']}` ({row['model']}): {cell(row['refused'])}")
            continue
        times = [
            f"{statistics.median(row[side]['seconds']) * 1e3:.1f}" if row.get(side) else "" for side in ("ours", "peer")
        ]
        numbers = ["", "", ""]
        if row.get("ratio") is not None:
            numbers = [f"{row['ratio']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}", f"{row['minima']:.2f}"]
        wanted = "" if row.get("must") is None else f"{row['must']:g}"
        rows.append(f"| `{row['name']}` | {row['model'] or ''} | " + " | ".join([*times, *numbers, wanted]) + " |")
    about.append("\n".join(rows))
    about.append(
        "Ratio: TRL's time over ours in the same turn, the median and its quartiles. Above 1 minirl is faster."
    )
    versions = {}
    for row in report["workloads"]:
        versions |= row.get("ours", {}).get("versions", {}) | row.get("peer", {}).get("versions", {})
    about.append("Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")
    if refused:
        about.append("Refused, because the two sides did not compute the same:\n\n" + "\n".join(refused))
    return "\n\n".join(about)


def gpu_section(path: Path, report: dict) -> str:
    machine, versions, checks = report["machine"], report["versions"], report["checks"]
    passed = sum(check["passed"] for check in checks)
    known = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    parts = [
        f"`data/bench/{path.name}`: {cell(machine['name'])}; {known}. {passed} of {len(checks)} checks against float64 passed."
    ]
    if report.get("interpreted"):
        parts.append("Run in the interpreter: the times mean nothing.")
    if "ceilings" in report:
        copy, matmul = (report["ceilings"][name] / 1e12 for name in ("copy", "matmul"))
        parts.append(f"Measured first: a copy moves {copy:.2f} TB/s, a matrix product does {matmul:.0f} TFLOP/s.")
    rows = [
        "| operation | size | who | ms | of the ceiling | more memory, GB | wanted |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in report.get("rows", []):
        for who, result in row["results"].items():
            wanted = cell(row["goal"] or "") if who.startswith("minirl") else ""
            numbers = (
                [cell(result["error"]), "", ""]
                if "error" in result
                else [
                    f"{result['ms']:.4g}",
                    f"{result['share_of_ceiling']:.0%} of {row['ceiling']}",
                    "" if result["extra_bytes"] is None else f"{result['extra_bytes'] / 1e9:.2f}",
                ]
            )
            rows.append("| " + " | ".join([cell(row["name"]), cell(row["size"]), cell(who), *numbers, wanted]) + " |")
    return "\n\n".join([*parts, "\n".join(rows)] if len(rows) > 2 else parts)


def interview() -> tuple[str, int]:
    """All cards, folded, by topic; and how many there are."""
    cards = [
        json.loads(line) for line in (ROOT / "data/interview.jsonl").read_text("utf-8").splitlines() if line.strip()
    ]
    lessons = {path.stem for path in NOTEBOOKS}
    parts, topic = [], None
    for topic in dict.fromkeys(card["topic"] for card in cards):
        parts.append(f"## {topic[0].upper()}{topic[1:]}\n")
        for card in cards:
            if card["topic"] == topic:
                lesson = card["notebook"]
                source = f"[{lesson}](notebooks/{lesson}.ipynb)" if lesson in lessons else cell(lesson)
                answer = [f"**Short.** {paragraphs(card['short'])}", paragraphs(card["long"])]
                answer += [f"**Wrong:** {cell(wrong['answer'])} {cell(wrong['why'])}" for wrong in card["wrong"]]
                answer += ["**Asked next:**", "\n".join(f"- {cell(question)}" for question in card["follow_ups"])]
                answer.append(f"Level {card['level']}. Lesson: {source}")
                parts.append(
                    f"````{{fold}} {cell(card['question'])}\n:name: {card['id']}\n\n" + "\n\n".join(answer) + "\n````\n"
                )
    return "\n".join(parts), len(cards)


def paragraphs(text: str) -> str:
    return "\n\n".join("\\\n".join(map(markdown_line, block.splitlines())) for block in text.split("\n\n"))
