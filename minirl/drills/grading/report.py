"""What the teacher and the students read: a table, one page a student, a summary."""

import csv
import re
from collections import Counter
from pathlib import Path

from minirl.drills import hint
from minirl.drills.grading.grade import Marks, Verdict

WORDS = {
    "ok": "right",
    "mistake": "a well-known mistake",
    "wrong": "not the right numbers",
    "error": "it raised, or is no function",
    "timeout": "it took too long",
    "crash": "it took its process down",
    "library": "it calls the library's own",
    "unread": "the file cannot be run",
}


def mark_of(verdict: Verdict) -> str:
    """The status, or the name of the mistake."""
    return verdict.mistake or verdict.status


def write_grades(path: Path, drills: list[str], marks: list[Marks]) -> None:
    """A row a student: the mark of each drill, points, total, notes."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["student", *drills, "points", "total", "notes"])
        for one in marks:
            found = [mark_of(verdict) for verdict in one.verdicts]
            notes = one.notes + [f"{v.drill}: {note}" for v in one.verdicts for note in v.notes]
            said = harmless("; ".join(notes).replace("\n", " "))[:500]
            rows.writerow([harmless(one.student), *found, one.points, len(drills), said])


def harmless(text: str) -> str:
    """A spreadsheet takes what begins like this for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def page(marks: Marks) -> str:
    """One student's report, in Markdown. What the submission said itself stands in code blocks."""
    lines = [f"# {_plain(marks.student)}: {marks.points} of {len(marks.verdicts)}", ""]
    if marks.notes:
        lines += [f"About {_plain(marks.filename)}:", "", *_quoted("\n".join(marks.notes)), ""]
    lines += ["| drill | result | |", "| --- | --- | --- |"]
    for verdict in marks.verdicts:
        said = _plain(verdict.message.partition(": ")[2][:60]) if verdict.status == "todo" else WORDS[verdict.status]
        lines += [f"| {verdict.drill} | {mark_of(verdict)} | {said} |"]
    for verdict in marks.verdicts:
        remarked = verdict.notes or "\n" in verdict.message  # a second line is a remark, or the batch that differs
        if verdict.status in ("ok", "todo", "unread") and not remarked:
            continue
        lines += ["", f"## {verdict.drill}: {mark_of(verdict)}", "", *_quoted(verdict.message)]
        if verdict.notes:
            lines += ["", "Besides:", "", *_quoted("\n".join(verdict.notes))]
        if verdict.status in ("mistake", "wrong"):
            lines += ["", f"A hint: {hint(verdict.drill, 1)}"]
    if marks.head:
        lines += ["", "## What the file printed first", "", *_quoted(marks.head)]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> list[str]:
    """Indented by four: code, whatever Markdown or HTML it holds. Control characters are shown as dots."""
    text = re.sub(r"[^\n\t -~\u00a0-\ufffd]", ".", text[:4000])
    return [f"    {line[:300]}" for line in text.splitlines()]


def _plain(name: str) -> str:
    return re.sub(r"[^\w '.,@-]", "_", name)


def write_pages(folder: Path, marks: list[Marks]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for one in marks:
        (folder / f"{_plain(one.student)}.md").write_text(page(one), encoding="utf-8")


def summary(drills: list[str], marks: list[Marks], held: dict[str, str]) -> str:
    """For the teacher: how many got each drill right, which mistakes were made most, what was noticed."""
    width = max(len(name) for name in drills)
    lines = []
    for i, name in enumerate(drills):
        verdicts = [one.verdicts[i] for one in marks]
        right = sum(verdict.status == "ok" for verdict in verdicts)
        rest = Counter(mark_of(verdict) for verdict in verdicts if verdict.status != "ok")
        others = ", ".join(f"{what} {n}" for what, n in rest.most_common(4))
        lines.append(f"{name:<{width}}  {right:>3} of {len(marks)} right" + (f"   {others}" if others else ""))
    noticed = [one for one in marks if one.notes or any(verdict.notes for verdict in one.verdicts)]
    if noticed:
        lines += ["", "To look at:"]
    for one in noticed:
        notes = [*one.notes, *(f"{v.drill}: {note}" for v in one.verdicts for note in v.notes)]
        more = f" (and {len(notes) - 2} more)" if len(notes) > 2 else ""
        lines.append(_shown(f"  {one.student}: {'; '.join(notes[:2])}{more}"))
    lines += ["", "Submissions ran with: " + "; ".join(f"{what}: {how}" for what, how in held.items()) + "."]
    return "\n".join(lines)


def _shown(text: str) -> str:
    """On one line, and without what a terminal would obey."""
    return re.sub(r"[^ -~\u00a0-\ufffd]", " ", text)[:400]
