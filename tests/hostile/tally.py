"""What is counted: inputs tried, those refused by name, and those on which something was lost. It is printed at the end.

A test notes its numbers in its report's user properties, which pytest-xdist carries from its workers to where the
summary is written.
"""

from collections.abc import Callable

import pytest

NAMES = ("hostile inputs tried", "refused by name", "lost")
ERRORS = (ValueError, OSError, ImportError)  # OSError: FileNotFoundError and its relatives, which name their file


def note(request: pytest.FixtureRequest, *, tried: int = 1, refused: int = 0, lost: int = 0) -> None:
    properties = request.node.user_properties
    properties += zip(NAMES, (tried, refused, lost), strict=True)


def refused(request: pytest.FixtureRequest, call: Callable[[], object], *names: str) -> str:
    """The message of the error that a call ends in; it has to be a documented one and hold these words."""
    with pytest.raises(ERRORS) as caught:
        call()
    said = str(caught.value)
    assert caught.type not in (UnicodeDecodeError, UnicodeEncodeError), said
    for name in names:
        assert name in said, f"{name!r} is not in the message: {said}"
    assert len(said) < 1000, f"a message of {len(said)} characters: {said[:200]}"
    note(request, refused=1)
    return said


def pytest_terminal_summary(terminalreporter) -> None:
    totals, failed = dict.fromkeys(NAMES, 0), 0
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            if report.nodeid.startswith("tests/hostile/") and report.when == "call":
                failed += outcome == "failed"
                for name, number in report.user_properties:
                    totals[name] = totals.get(name, 0) + number
    if any(totals.values()) and not getattr(terminalreporter.config, "hostile_inputs_told", False):
        terminalreporter.config.hostile_inputs_told = True  # this hook may stand in two conftest files
        totals["lost"] += failed
        terminalreporter.write_line(", ".join(f"{name}: {totals[name]}" for name in NAMES))
