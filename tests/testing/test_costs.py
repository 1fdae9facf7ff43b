"""What a step costs is examined by counting: operations, bytes, and what piles up."""

import threading
import time
from functools import partial

import pytest

from regplug.testing import check_plugin
from regplug.testing.checks.auditing import audited
from tests.testing import wrong_costs
from tests.testing.whole import whole

WRONG = [
    (partial(wrong_costs.AllPairs, 0.01), "cost", "16 times as many elements of tensors"),
    (wrong_costs.PairsInPython, "cost", "16 times as many lines of Python"),
    (wrong_costs.AllOfHistory, "cost", "step 44 takes"),
    (wrong_costs.OneVector, "memory", "MiB of tensors for a moment, on a model of 24 MiB"),
    (wrong_costs.OpensFiles, "growth", "112 more open files"),
    (wrong_costs.StartsThreads, "growth", "112 more threads"),
]


CHECKS = ["runs", "acts", "cost", "leak", "memory", "growth"]


@pytest.mark.parametrize(("plugin", "check", "said"), WRONG)
def test_what_costs_too_much_fails_there_alone(plugin, check, said):
    report = check_plugin(plugin, checks=CHECKS)
    assert report.failed_checks() == {check}, str(report)
    assert said in report.cause.message


@pytest.mark.slow
@pytest.mark.parametrize(("plugin", "check", "said"), WRONG)
def test_the_whole_exam_says_the_same(plugin, check, said):
    report = whole(plugin)
    assert report.failed_checks() == {check}, str(report)
    assert said in report.cause.message


def test_what_piles_up_is_told_with_its_place():
    report = check_plugin(wrong_costs.Logs, checks=["growth"])
    assert f"most of them made at {wrong_costs.__file__}:" in report.cause.message


def test_graphs_that_are_kept_are_tensors_that_leak():
    report = check_plugin(partial(wrong_costs.KeepsGraphs, 0.01), checks=["leak", "growth"])
    assert report.failed_checks() == {"leak"}


@pytest.mark.parametrize(
    "plugin",
    [
        partial(wrong_costs.RowsWithRows, 0.01),
        wrong_costs.OneByOne,
        wrong_costs.LastHundred,
        wrong_costs.OneThread,
    ],
)
def test_what_only_looks_costly_passes(plugin):
    report = check_plugin(plugin, checks=CHECKS)
    assert report.passed, str(report)
    assert {"cost", "memory", "growth"} <= {r.check for r in report.of("passed")}


def test_what_another_thread_does_meanwhile_is_not_the_steps():
    sleeper = threading.Thread(target=lambda: time.sleep(0))
    with audited() as done:
        sleeper.start()
        sleeper.join()
    assert done == []
