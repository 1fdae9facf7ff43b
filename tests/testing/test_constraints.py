"""Constraints and proximal operators are examined where they matter, also the weakest."""

import re
from functools import partial

import pytest

from tests.testing import wrong_constraints as cases
from tests.testing.sat import sat
from tests.testing.test_kinds import check_of, classes
from tests.testing.whole import whole

SAID = {
    "RowsByColumns": "of one.weight in one step it moves again in the next",
    "HalfInLogarithms": "it moves again in the next",
    "DividedTwice": "moves weights further than to where it would leave them alone",
    "SaysBothNearest": "goes to the nearest point, but",
    "SaysNearest": "goes to the nearest point, but",
    "HuberTooEarly": "with strength .* its objective",
    "CrossesZero": "with strength .* its objective",
    "Straight": "with strength .* its objective",
}
ALL = [cls for cls in classes(cases) if cls is not cases.Constraint]
WRONG = [cls for cls in ALL if cls.__name__ in SAID]
RIGHT = [cls for cls in ALL if cls not in WRONG]


def weak(cls):
    """As weak as authors give them, or with a bound that some weights are beyond."""
    return cls if issubclass(cls, cases.Constraint) else partial(cls, 1e-5)


def test_all_that_is_wrong_here_says_in_what():
    assert {cls.__name__ for cls in ALL if check_of(cls) in ("projection", "proximal")} == set(SAID)


@pytest.mark.parametrize("cls", WRONG)
def test_what_is_wrong_fails_there(cls):
    report = sat(weak(cls), ["proximal", "projection"])
    assert report.failed_checks() == {check_of(cls)}, str(report)
    message = report.failures[0].message
    assert re.search(SAID[cls.__name__], message), message


@pytest.mark.parametrize("cls", RIGHT)
def test_what_only_looks_like_it_passes(cls):
    report = sat(weak(cls), ["learning-rate", "proximal", "projection"])
    assert report.passed, str(report)


def test_what_takes_more_of_a_larger_matrix_is_no_more_than_linear():
    assert sat(weak(cases.TraceNorm), ["cost"]).passed


@pytest.mark.slow
@pytest.mark.parametrize("cls", ALL)
def test_the_whole_exam_says_the_same(cls):
    report = whole(weak(cls))
    assert report.failed_checks() == ({check_of(cls)} if cls in WRONG else set()), str(report)
