"""A mistake is known by what it does: in other words, in float32, as lists. And each has an effect on training."""

import inspect
import itertools
from collections import Counter

import pytest
import torch
from rewritten import REWRITTEN

from minirl.drills import BANK, check, names
from minirl.drills.answers import answer, first_difference
from minirl.drills.desk import DRILLS
from minirl.drills.effects import EFFECTS
from minirl.drills.judge import mutants_of

# In other words


@pytest.mark.parametrize(
    "name, mutant, function",
    [pytest.param(*one, id="-".join([*one[:2], one[2].__name__])) for one in REWRITTEN],
)
def test_a_mistake_in_other_words_is_named(name, mutant, function):
    result = check(name, function)
    assert (result.status, result.mistake) == ("mistake", mutant), result.message


def test_every_drill_has_rewritten_mistakes_of_two_kinds_or_more():
    kinds = Counter(name for name, _ in {(name, mutant) for name, mutant, _ in REWRITTEN})
    assert sorted(kinds) == names() and min(kinds.values()) >= 2
    assert len({function.__name__ for *_, function in REWRITTEN}) == len(REWRITTEN)


# In float32, and as lists


def single(x):
    """x with every floating tensor, or number, rounded to float32; a reducer does so with its inputs and result."""
    if isinstance(x, torch.Tensor):
        return x.float() if x.is_floating_point() else x
    if isinstance(x, float):
        return torch.tensor(x, dtype=torch.float32).item()
    if isinstance(x, tuple):
        return tuple(single(part) for part in x)
    return in_float32(x) if callable(x) else x


def in_float32(function):
    if inspect.isclass(function):  # the controller: its coefficient is all there is to round
        return type(
            function.__name__, (function,), {"update": lambda self, *args: single(function.update(self, *args))}
        )
    return lambda *args, **knobs: single(function(*map(single, args), **knobs))


@pytest.mark.parametrize("name", names())
def test_a_mistake_in_float32_is_named(name):
    """As in `check`: by the first wrong version that does the same on every case, and not taken for the right one."""
    one = DRILLS[name]
    known = {mutant.name: mutant.function for mutant in mutants_of(one)} | {"right": one.of}
    answers = {version: [answer(one, function, case) for case in one.cases] for version, function in known.items()}
    named = {}
    for version, function in known.items():
        rounded = [answer(one, in_float32(function), case) for case in one.cases]
        named[version] = [v for v, exact in answers.items() if first_difference(one, exact, rounded) is None]
    assert named == {version: [version] for version in known}


def listed(x):
    return x.tolist() if isinstance(x, torch.Tensor) else tuple(map(listed, x)) if isinstance(x, tuple) else x


def as_lists(function):
    return lambda *args, **knobs: listed(function(*args, **knobs))


@pytest.mark.parametrize("name", [name for name in names() if not DRILLS[name].gradient])
def test_a_mistake_that_returns_lists_is_the_same_mistake(name):
    """Lists of numbers are accepted where no gradient is judged; the controller returns numbers as it is."""
    one = DRILLS[name]
    mutants = [mutant for mutant in mutants_of(one) if not inspect.isclass(mutant.function)]
    for mutant in mutants:
        tensors, lists = (
            [answer(one, f, case) for case in one.cases] for f in (mutant.function, as_lists(mutant.function))
        )
        assert first_difference(one, tensors, lists) is None, mutant.name
    assert not mutants or check(name, as_lists(mutants[-1].function)).mistake == mutants[-1].name


# Effects


def test_every_mistake_has_an_effect_and_no_effect_is_of_an_unknown_one():
    written = [(name, mutant) for name, of_one in EFFECTS.items() for mutant in of_one]
    assert sorted(written) == sorted((mutant.of.__name__, mutant.name) for mutant in BANK)


def test_an_effect_is_one_short_sentence_of_its_own():
    for name, of_one in EFFECTS.items():
        for mutant, effect in of_one.items():
            assert 30 < len(effect) <= 140 and effect.endswith("."), (name, mutant)
            assert "  " not in effect and effect == effect.strip(), (name, mutant)
        for (a, one), (b, two) in itertools.pairwise(of_one.items()):
            assert one != two, (name, a, b)


def test_an_effect_is_told_with_the_mistake_and_does_not_repeat_it():
    for mutant in BANK:
        assert mutant.effect and mutant.effect not in mutant.sentence and mutant.sentence not in mutant.effect
    told = check("gae", next(mutant.function for mutant in BANK if mutant.name == "value_added")).message
    assert told.endswith(EFFECTS["gae"]["value_added"])
