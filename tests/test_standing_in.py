"""Studies replace functions inside a loop: a name that the loop does not use would leave it as it is, unnoticed."""

import sys
from types import SimpleNamespace

import pytest

from minirl.tasks import DATA

sys.path.insert(0, str(DATA / "studies"))
from standing_in import standing_in


def loop():
    """A module with a function that uses `double`, and one that it only imported."""
    module = SimpleNamespace(__name__="loop", double=lambda x: 2 * x, imported=lambda x: x)
    module.run = lambda x: module.double(x)
    return module


def test_what_stands_in_is_used_and_goes_again():
    module = loop()
    with standing_in(module, {"double": lambda x: 3 * x}):
        assert module.run(1) == 3
    assert module.run(1) == 2


@pytest.mark.parametrize(("name", "says"), [("treble", "has no treble"), ("imported", "never called imported")])
def test_a_stand_in_that_changes_nothing_is_an_error(name, says):
    module = loop()
    with pytest.raises(ValueError, match=f"^loop {says}"), standing_in(module, {name: lambda x: 3 * x}):
        module.run(1)
    assert module.run(1) == 2 and module.imported(1) == 1
