"""The line with the counts, also where these tests run alone."""

from hostile.tally import pytest_terminal_summary as pytest_terminal_summary
