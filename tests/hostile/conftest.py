"""The line with the counts, and how many examples hypothesis draws: few in CI, many under --hypothesis-profile=nightly."""

from hostile.tally import pytest_terminal_summary as pytest_terminal_summary
from hypothesis import settings

settings.register_profile("nightly", derandomize=False, max_examples=2000, deadline=None, database=None)
settings.register_profile("longer", derandomize=True, max_examples=300, deadline=None, database=None)
