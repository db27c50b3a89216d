"""Every test runs with the shapes of minirl enforced: jaxtyping reads the annotations, beartype checks them."""

import jaxtyping
import pytest
import torch
from hostile import tally
from hypothesis import settings

jaxtyping.install_import_hook("minirl", "shape_checker.check")  # has to come before anything imports minirl

torch.set_num_threads(1)  # the tensors are tiny, and the number of threads changes the last bit
settings.register_profile("minirl", derandomize=True, max_examples=25, deadline=None, database=None)
settings.register_profile("longer", derandomize=True, max_examples=300, deadline=None, database=None)
settings.register_profile("nightly", derandomize=False, max_examples=2000, deadline=None, database=None)
settings.load_profile("minirl")  # --hypothesis-profile=nightly comes after it, and wins


@pytest.fixture
def unhooked():
    """No shape checks, in calls inside the library either: the error is then the one a user meets."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pytest_terminal_summary(terminalreporter):
    """What was tried and survived, at the end."""
    tally.pytest_terminal_summary(terminalreporter)
    passed = [pair for report in terminalreporter.stats.get("passed", []) for pair in report.user_properties]
    if faults := sum(number for name, number in passed if name == "faults survived"):
        terminalreporter.write_line(f"faults survived: {faults}")
