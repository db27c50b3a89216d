"""Exercises with a checker that names the mistake.

    from minirl.drills import check, drill, hint, names

    print(drill("gae"))              # what to write
    print(check("gae", my_gae))      # is it right, and if not, which well-known mistake is it?
    print(hint("gae", 1))            # the first of three hints

Behind it stands a bank of wrong versions, one file for each room of the library. They are the same that every test of
the library has to catch. `keep_progress("my_drills.json")` notes what was tried and solved; `Interview` draws some
drills and sets a clock.
"""

from minirl.drills.bank import BANK, Mutant
from minirl.drills.desk import drill, hint, names
from minirl.drills.interview import Interview
from minirl.drills.judge import Result, check
from minirl.drills.kept import keep_progress, progress

__all__ = ["BANK", "Interview", "Mutant", "Result", "check", "drill", "hint", "keep_progress", "names", "progress"]
