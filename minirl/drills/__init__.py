"""Exercises with a checker that names the mistake.

    from minirl.drills import check, drill, hint, names

    print(drill("gae"))              # what to write
    print(check("gae", my_gae))      # is it right, and if not, which well-known mistake is it?
    print(hint("gae", 1))            # the first of three hints

Behind it stands a bank of wrong versions, one file for each room of the library. They are the same that every test of
the library has to catch.
"""

from minirl.drills.bank import BANK, Mutant
from minirl.drills.desk import drill, hint, names
from minirl.drills.judge import Result, check

__all__ = ["BANK", "Mutant", "Result", "check", "drill", "hint", "names"]
