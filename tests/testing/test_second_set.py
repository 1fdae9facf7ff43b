"""A second set of wrong plugins, each in one place, and of right ones that are unusual."""

import pytest

from regplug.testing import CHECKS, check_plugin
from tests.testing import (
    unusual_more,
    unusual_terms,
    unusual_third,
    wrong_at_zero,
    wrong_habits,
    wrong_held,
    wrong_left,
    wrong_refusals,
    wrong_subtle,
    wrong_subtle_loops,
)
from tests.testing.sat import sat
from tests.testing.test_kinds import check_of, classes, factory
from tests.testing.whole import whole

SECOND = (wrong_subtle, wrong_subtle_loops, wrong_refusals, wrong_habits)
THIRD = (wrong_held, wrong_left, wrong_at_zero)
ALL = [cls for cls in classes(*SECOND, *THIRD) if check_of(cls) in CHECKS]
RIGHT = [*classes(unusual_more, unusual_terms, unusual_third), wrong_habits.Decay]
# What the checks were made sharper for; `make soak` has all.
SHARPER = [
    *(wrong_subtle.OneScaleForAll, wrong_subtle.Float16Strength, wrong_subtle_loops.LargerLoss),
    *(wrong_subtle_loops.OncePerStep, wrong_subtle_loops.RoundsRate),
    *classes(wrong_refusals),
    *(cls for cls in classes(wrong_habits) if check_of(cls) not in ("A look-alike", "collective")),
    *(wrong_held.RenamesItself, wrong_held.ForgetsDeliveryOfSeveral, wrong_held.OwnPatterns),
    *(wrong_held.AnchorsOfAll, wrong_held.AnchorsOfTheFirst, wrong_held.GradientByVersion),
    *(wrong_held.Saturates, wrong_held.ShrinksByRatio, wrong_held.AlphaForgotten),
    *(wrong_held.CountsSinceAttach, wrong_held.CountsLosses, wrong_held.NoParts),
    *(wrong_left.GradientModeStaysOn, wrong_left.DetachesTheLoss, wrong_left.OptimizersMemory),
    *classes(wrong_at_zero),
    *(wrong_left.ClearsGradients, wrong_left.MakesGradients, wrong_left.WeightsOfAttach),
]
SMOOTHER = {
    unusual_more.Kronecker: "cost",
    unusual_more.PrunesShare: "strength",
    unusual_more.StandardizesRows: "projection",
    unusual_more.ClipsElements: "adds",
    unusual_terms.Outputs: "cost",
    unusual_terms.TakesByClosure: "copies",
    unusual_terms.NotesItsTerm: "schedule",
    unusual_terms.RunsTwice: "state",
    unusual_terms.GradientOf: "where",
    unusual_terms.DropsGradients: "strength",
    unusual_terms.LargestByHalf: "learning-rate",
    wrong_habits.Decay: "learning-rate",
    unusual_third.Bridge: "attach-again",
    unusual_third.LogSum: "proximal",
    unusual_third.Simplex: "where",
    unusual_third.AlikeNeighbours: "untouched",
    unusual_third.Tempered: "restore",
}


def test_there_are_enough_of_both():
    assert len(ALL) >= 30
    assert len(RIGHT) >= 15


@pytest.mark.parametrize("cls", SHARPER)
def test_what_got_by_fails_there(cls):
    report = sat(factory(cls), [check_of(cls)])
    assert report.failed_checks() == {check_of(cls)}, str(report)


@pytest.mark.parametrize(("cls", "check"), SMOOTHER.items())
def test_what_was_a_false_alarm_passes(cls, check):
    report = sat(factory(cls), [check])
    assert report.passed, str(report)
    assert report.of("passed")


def test_a_hook_that_is_not_marked_is_told_by_a_report():
    report = check_plugin(wrong_left.Unmarked, checks=["runs", "acts"])
    assert report.failed_checks() == {"runs"}, str(report)
    assert "before_step is a hook but is not marked" in report.cause.message
    assert {result.outcome for result in report.results} == {"failed", "not judged"}


@pytest.mark.parametrize(
    "spec", ["l1({'inner.*': 1e-2, '*': 1e-3})", "group_lasso(per_layer(1e-3, decay=0.5))"]
)
def test_strengths_by_pattern_are_not_taken_for_one(spec):
    assert sat(spec, ["delivery"]).passed


@pytest.mark.slow
@pytest.mark.parametrize("cls", ALL)
def test_wrong_plugin_fails_in_its_own_check_alone(cls):
    report = whole(factory(cls))
    assert report.failed_checks() == {check_of(cls)}, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("cls", RIGHT)
def test_right_plugin_passes_the_whole_exam(cls):
    report = check_plugin(factory(cls))
    assert report.passed, str(report)
