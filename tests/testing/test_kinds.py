"""Whatever is wrong in one way fails in the check made for that, and what looks like it passes.

Each class says in its docstring which check it fails, or that it is a look-alike.
"""

import inspect
import re
from functools import partial

import pytest

from regplug import Penalty, Plugin
from regplug.testing import CHECKS, check_plugin
from tests.testing import (
    unusual_plugins,
    wrong_arguments,
    wrong_places,
    wrong_strengths,
    wrong_terms,
)
from tests.testing.whole import whole

# What an author may well be told by the way out: the names that the messages go by.
RELATED = ("differentiable", "gradient", "finite-difference", "every-batch", "zero-strength")
WAY_OUT = {
    "runs": r"on_loss",
    "arguments": r"__init__|on self|\*\*kwargs|a copy|attribute",
    "where": r"use where|where nothing fits",
    "strength": r"self\.strength|leave λ to the penalty|round it nowhere",
    "schedule": r"session\.steps|self\.strength|Scheduled|turn it off for good",
    "delivery": r"λ|delivery|delivered|proximal",
    "attach-again": r"on_attach|on self|nothing of each other",
    "pure": r"new tensors|in place|leave λ out|hooks",
    "extremes": r"small ε|state the gradient|autograd of value",
    "memory-order": r"reshape|index and shape",
    "shapes": r"on_attach|any number of dimensions",
    "loss-event": r"return|detach\(\)|backward|on_state|validation|the loss alone|whatever",
}


# What could be blamed on the same cause; the rest of the exam is `slow`.
QUICK = [check for check in CHECKS if check in {*WAY_OUT, *RELATED}]


def classes(*modules):
    for module in modules:
        for cls in vars(module).values():
            own = inspect.isclass(cls) and cls.__module__ == module.__name__
            if own and issubclass(cls, Plugin):
                yield cls


def factory(cls):
    needs = inspect.signature(cls).parameters.get("strength")
    return partial(cls, 0.01) if needs is not None and needs.default is needs.empty else cls


def check_of(cls):
    return (inspect.getdoc(cls) or "").partition(":")[0]


ALL = list(classes(wrong_arguments, wrong_places, wrong_strengths, wrong_terms))
WRONG = [cls for cls in ALL if check_of(cls) in CHECKS]
RIGHT = [cls for cls in ALL if cls not in WRONG] + list(classes(unusual_plugins))


def test_each_of_these_checks_has_two_wrong_plugins_and_there_are_look_alikes():
    found = [check_of(cls) for cls in WRONG]
    assert set(found) == set(WAY_OUT)
    assert min(found.count(check) for check in WAY_OUT) >= 2
    assert len(RIGHT) >= 20
    assert all(issubclass(cls, Penalty) for cls in unusual_plugins.PENALTIES)


def each(cases, quick):
    """Yield the cases, all but a few to be tried by `make soak` alone."""
    for cls in cases:
        marks = () if cls in quick else (pytest.mark.slow,)
        yield pytest.param(cls, id=cls.__name__, marks=marks)


# One for each check, another one than the exam's own tests have.
SECOND = [[cls for cls in WRONG if check_of(cls) == check][1] for check in WAY_OUT]


@pytest.mark.parametrize("cls", list(each(WRONG, SECOND)))
def test_wrong_plugin_fails_in_its_own_check_alone(cls):
    report = check_plugin(factory(cls), checks=QUICK)
    check = check_of(cls)
    assert report.failed_checks() == {check}, str(report)
    first = report.failures[0].message
    assert re.search(WAY_OUT[check], first), first


@pytest.mark.parametrize("cls", list(each(RIGHT, RIGHT[::8])))
def test_what_looks_like_it_passes(cls):
    report = check_plugin(factory(cls), checks=QUICK)
    assert report.passed, str(report)
    assert len(report.of("passed")) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("cls", [*WRONG, *RIGHT], ids=lambda cls: cls.__name__)
def test_the_whole_exam_says_the_same(cls):
    report = whole(factory(cls))
    assert report.failed_checks() == ({check_of(cls)} if cls in WRONG else set()), str(report)
