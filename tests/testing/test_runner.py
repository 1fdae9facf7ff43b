"""The exam ends with a report whatever a plugin does to its process, and goes on meanwhile."""

import time
from functools import partial

import pytest

from regplug.testing import CHECKS, check_plugin, desk, processes
from tests.testing import wrong_runs


@pytest.fixture
def short(monkeypatch):
    """Limits of seconds, where they are most of a minute."""
    monkeypatch.setattr(desk, "SECONDS", 4.0)
    monkeypatch.setattr(processes, "BEHIND_SECONDS", 8.0)
    monkeypatch.setattr(processes, "JOB_SECONDS", 8.0)


def line_of(cls, text):
    """Return the place of a line of a wrong plugin, as file:line."""
    import inspect

    lines, first = inspect.getsourcelines(cls)
    (at,) = [first + i for i, line in enumerate(lines) if text in line]
    return f"{inspect.getsourcefile(cls)}:{at}"


@pytest.mark.parametrize(
    ("plugin", "said", "line"),
    [
        (wrong_runs.Exits, "it ends the process: SystemExit: strength is too small", "sys.exit("),
        (wrong_runs.ExitsAtOnce, "it ends the process: os._exit(3)", "os._exit(3)"),
        (wrong_runs.Crashes, "it ends the process, by SIGSEGV", "string_at"),
        (wrong_runs.ExitsInMetrics, "it ends the process: os._exit(0)", "os._exit(0)"),
        (
            wrong_runs.Interrupts,
            "it ends the process: KeyboardInterrupt",
            "raise KeyboardInterrupt",
        ),
        (wrong_runs.RaisesAlways, "has no attribute 'sine'", "sine"),
    ],
)
def test_what_ends_the_process_is_one_failure_with_its_place(plugin, said, line):
    report = check_plugin(plugin)
    assert report.failed_checks() == {"runs"}, str(report)
    assert said in report.cause.message
    assert line_of(plugin, line) in report.cause.message
    others = {r.check: (r.outcome, r.message) for r in report.results if r.check != "runs"}
    assert others == {c: ("not judged", "because runs failed") for c in CHECKS if c != "runs"}
    assert str(report).startswith(f"runs failed: {report.cause.message}"[:200])


@pytest.mark.parametrize("plugin", [partial(wrong_runs.NeverConverges, 0.01)])
def test_what_never_ends_is_found_with_its_place(plugin, short):
    started = time.monotonic()
    report = check_plugin(plugin)
    assert report.failed_checks() == {"runs"}, str(report)
    assert time.monotonic() - started < 30
    assert "did not come to an end" in report.cause.message
    assert f"{wrong_runs.__file__}:" in report.cause.message
    assert report.cause.message.endswith("in value)")


@pytest.fixture
def warm():
    """The ranks of exams, which import for seconds before their first job is done."""
    assert check_plugin("l1(1e-3)", checks=["collective", "ddp"]).passed


@pytest.mark.parametrize("plugin", [wrong_runs.WaitsForOthers, wrong_runs.MetricOnMain])
def test_a_rank_that_waits_alone_is_found_with_its_place(plugin, warm, short):
    asked = ["runs", "acts", "collective", "ddp", "fsdp2", "ranks", "resume", "restore"]
    report = check_plugin(plugin, checks=asked)
    assert report.failed_checks() == {"collective"}, str(report)
    assert "rank 0 did not finish in time" in report.cause.message
    assert f"{wrong_runs.__file__}:" in report.cause.message
    assert {r.check for r in report.of("not judged")} == {"ddp", "fsdp2", "ranks"}
    assert {"resume", "restore"} <= {r.check for r in report.of("passed")}


def test_limits_find_what_hangs_within_a_minute():
    slack = 10.0
    assert desk.SECONDS + slack <= 60
    assert processes.JOB_SECONDS + processes.GRACE_SECONDS <= 60


class DiesWhenCopied(wrong_runs.Acts):
    """Ends the process in one check only, of several in the middle of the exam."""

    def act(self, session):
        if session.optimizer.param_groups[0]["momentum"]:
            import os

            os._exit(1)
        super().act(session)


def test_the_exam_goes_on_after_a_process_died():
    asked = ["runs", "acts", "checkpoint-step", "resume", "copies", "attribution"]
    report = check_plugin(DiesWhenCopied, checks=asked)
    assert report.failed_checks() == {"checkpoint-step", "resume"}
    assert {r.check for r in report.results} == set(asked)
    assert {"copies", "attribution"} <= {r.check for r in report.of("passed")}


NEVER_ACTS = [wrong_runs.Empty, wrong_runs.EveryTenth, wrong_runs.OnlyAfterLoss]


@pytest.mark.parametrize("plugin", NEVER_ACTS)
def test_what_never_acts_is_said_to(plugin):
    report = check_plugin(plugin, checks=["runs", "acts", "gradient", "resume"])
    assert report.failed_checks() == {"acts"}, str(report)
    assert report.cause.message.startswith("never seen to act")


@pytest.mark.slow
@pytest.mark.parametrize("plugin", NEVER_ACTS)
def test_that_it_never_acts_is_all_that_is_said(plugin):
    assert check_plugin(plugin).failed_checks() == {"acts"}


def test_a_gradient_of_zeros_is_no_act():
    report = check_plugin(partial(wrong_runs.ToZero, 0.01), checks=["acts"])
    assert report.failed_checks() == {"acts"}


LOOKS_WRONG = [
    wrong_runs.SaysThatItWaits,
    wrong_runs.EveryThird,
    wrong_runs.Watches,
    wrong_runs.SumsOnAll,
    partial(wrong_runs.Newton, 0.01),
    partial(wrong_runs.OnlyWhereLarge, 0.01),
    "max_norm(5)",
    "l2(warmup(constant(1e-2), steps=50))",
    "activity(1e-3, where='one')",
    "l1(1.0)",
]


@pytest.mark.parametrize("plugin", LOOKS_WRONG)
def test_what_only_looks_wrong_acts(plugin):
    report = check_plugin(plugin, checks=["runs", "acts", "every-batch", "strength", "schedule"])
    assert report.passed, str(report)
    assert "acts" in {r.check for r in report.of("passed")}


# One in the loss; `make soak` has all.
@pytest.mark.parametrize(
    "plugin",
    [pytest.param(p, marks=() if p == LOOKS_WRONG[-2] else pytest.mark.slow) for p in LOOKS_WRONG],
)
def test_what_only_looks_wrong_passes(plugin):
    report = check_plugin(plugin)
    assert report.passed, str(report)
