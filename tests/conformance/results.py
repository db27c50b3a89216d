"""Writes RESULTS.md from the reports of the runs, one of each environment.

python tests/conformance/results.py today.xml ppo.xml
"""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

HEAD = """# Results

Written by `results.py`; the README of this folder has the commands. Deviations are the largest difference of an entry,
relative where the number is above 1; the tests allow 1e-5. TRL computes in float64 here, save in ORPO
and in its n / (n - 1), and Liger in float32. A dash: nothing that carries a gradient, or not run.
"""


def rows(report: Path):
    """(file, versions, test, outcome, value, gradient) of every test that was not skipped."""
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is None:
            properties = {p.get("name"): p.get("value") for p in case.iter("property")}  # the last of a name stands
            outcome = "passed" if case.find("failure") is None and case.find("error") is None else "FAILED"
            deviations = (properties.get(f"{kind} deviation", "-") for kind in ("value", "gradient"))
            yield (
                case.get("classname").rpartition(".")[2],
                properties.get("versions"),
                case.get("name"),
                outcome,
                *deviations,
            )


def main(reports: list[str]) -> None:
    lines, last = [HEAD], None
    for report in reports:
        for file, versions, *row in rows(Path(report)):
            if file != last:
                lines += [
                    f"\n## {file}.py\n\n{versions}\n\n| test | outcome | value | gradient |\n| --- | --- | --- | --- |\n"
                ]
                last = file
            lines += [f"| {' | '.join(row)} |\n"]
    Path(__file__).with_name("RESULTS.md").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
