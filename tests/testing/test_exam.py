"""The exam finds what it is made to find: each wrong plugin fails in the check made for it."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

import regplug
from regplug.errors import SelectionError, SpecError
from regplug.testing import CHECKS, EXAM, PluginContract, check_plugin
from regplug.testing.registry import registered
from tests.testing.whole import whole
from tests.testing.wrong_formulas import L1
from tests.testing.wrong_lives import Remembers
from tests.testing.wrong_plugins import MORE, WIDER, WRONG
from tests.testing.wrong_ranks import SeedPerRank, TimesWorld


def test_there_is_a_wrong_plugin_for_each_check():
    assert tuple(WRONG) == CHECKS


def test_each_check_is_asked_once_and_after_what_it_depends_on():
    assert len(set(CHECKS)) == len(CHECKS)
    for check in registered():
        for other in check.after:
            assert CHECKS.index(other) < CHECKS.index(check.id), (other, check.id)


def with_what_they_depend_on(*checks):
    """Return the ids of checks and of those without which they could not be judged."""
    after = {c.id: c.after for c in registered()}
    ids, left = set(), list(checks)
    while left:
        ids.add(check := left.pop())
        left += [other for other in after[check] if other not in ids]
    return [c for c in CHECKS if c in ids]


@pytest.mark.parametrize("check", [c for c in CHECKS if c not in MORE])
def test_wrong_plugin_fails_in_its_check(check):
    report = check_plugin(WRONG[check], checks=with_what_they_depend_on(check))
    assert report.failed_checks() == {check}, str(report)
    assert not report.passed


# `make soak` has one for each check.
@pytest.mark.parametrize(
    "check",
    [pytest.param(c, marks=() if c == "loss-event" else pytest.mark.slow) for c in CHECKS],
)
def test_wrong_plugin_fails_exactly_where_it_is_wrong(check):
    report = whole(WRONG[check])
    assert report.failed_checks() == {check}, str(report)
    assert not report.passed


@pytest.mark.parametrize(
    ("plugin", "checks"), WIDER.items(), ids=lambda x: getattr(x, "__name__", None)
)
def test_wider_blunder_is_found_by_all_that_should(plugin, checks):
    asked = with_what_they_depend_on(*checks)
    assert check_plugin(plugin, checks=asked).failed_checks() == checks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "checks"), WIDER.items(), ids=lambda x: getattr(x, "__name__", None)
)
def test_wider_blunder_fails_no_other_check(plugin, checks):
    assert whole(plugin).failed_checks() == checks


@pytest.mark.parametrize("method", ["gradient", "gradients", "add_gradients"])
def test_whatever_states_the_gradient_is_examined(method):
    class Wrong(L1):
        pass

    wrong = {
        "gradient": lambda self, w: w.sign() / 2,
        "gradients": lambda self, ws, factor: [factor * w for w in ws],
        "add_gradients": lambda self, gs, ws, factor: [g.add_(factor) for g in gs],
    }
    setattr(Wrong, method, wrong[method])
    report = check_plugin(partial(Wrong, 0.01), checks=["gradient"])
    assert [failed.regime for failed in report.of("failed")] == [method]


def test_plugin_with_a_memory_of_its_own_passes():
    report = check_plugin(Remembers)
    assert report.passed, str(report)
    assert {r.check for r in report.of("passed")} >= {"state", "resume", "ddp", "fsdp2"}


def test_report_has_a_line_for_each_check_and_regime():
    report = check_plugin("l1(1e-3)", checks=["gradient", "accumulation", "ddp", "proximal"])
    assert report.passed
    results = report.as_json()
    assert [set(result) for result in results] == [
        {"plugin", "check", "regime", "outcome", "message", "exam"}
    ] * len(results)
    assert {result["exam"] for result in results} == {EXAM}
    regimes = {(result["check"], result["regime"]) for result in results}
    assert len(regimes) == len(results)
    for check in ("accumulation", "ddp"):
        found = {regime for c, regime in regimes if c == check}
        assert found == {"step", "loss", "proximal"}
    lines = str(report).splitlines()
    assert len(lines) == 2 + len(results) + 1
    assert lines[-1].startswith(f"l1(1e-3): {len(results)} passed in ")


def test_pinned_delivery_is_the_only_one_examined():
    report = check_plugin("l1(1e-3, delivery='proximal')", checks=["accumulation", "adds"])
    assert [(r.check, r.regime, r.outcome) for r in report.results] == [
        ("adds", "–", "skipped"),
        ("accumulation", "proximal", "passed"),
    ]


def test_what_does_not_apply_is_skipped_with_its_reason():
    report = check_plugin("weight_decay(0.1)", checks=["gradient", "proximal", "ddp"])
    assert report.passed
    skipped = {result.check: result.message for result in report.of("skipped")}
    assert skipped == dict.fromkeys(
        ["gradient", "proximal"], "it is no Penalty, so there is no value(w)"
    )
    assert {r.check for r in report.of("passed")} == {"ddp"}


def test_expected_failure_is_told_from_a_failure():
    reason = "known: it makes up for an average"
    report = check_plugin(TimesWorld, checks=["ddp", "adds"], expected_failures={"ddp": reason})
    assert report.passed
    (expected,) = report.of("expected")
    assert (expected.check, expected.message.startswith(reason)) == ("ddp", True)


def test_expected_failure_that_passes_fails():
    report = check_plugin("l2(1e-3)", checks=["adds"], expected_failures={"adds": "a rumour"})
    assert report.failed_checks() == {"adds"}
    assert "a rumour" in report.failures[0].message


def test_what_depends_on_a_failed_check_is_not_judged():
    report = check_plugin(WRONG["every-batch"], checks=["every-batch", "resume"])
    (other,) = report.of("not judged")
    assert (other.check, other.message) == ("resume", "because every-batch failed")
    assert not report.of("skipped")


def test_unknown_check_is_an_error_with_the_nearest():
    with pytest.raises(SpecError, match=r"there is no check 'acumulation'.*accumulation"):
        check_plugin("l1(1e-3)", checks=["acumulation"])
    with pytest.raises(SpecError, match=r"there is no check 'fsdp'.*fsdp2"):
        check_plugin("l1(1e-3)", checks=["adds"], expected_failures={"fsdp": "too new"})


def test_plugin_that_does_not_fit_the_model_is_an_error():
    with pytest.raises(SelectionError, match="encoder"):
        check_plugin("l1(1e-3, where='encoder.*')")


def test_plugin_that_can_not_be_sent_to_ranks_fails_there_and_says_how():
    class Local(L1):
        pass

    report = check_plugin(lambda: Local(0.1), checks=["adds", "ddp", "fsdp2"])
    assert report.failed_checks() == {"ddp"}
    assert "at the top of a module" in report.failures[0].message
    assert [result.message for result in report.of("not judged")] == ["because ddp failed"]


def test_hanging_rank_is_a_failure_and_the_next_exam_goes_on(monkeypatch):
    from regplug.testing import processes

    monkeypatch.setattr(processes, "JOB_SECONDS", 1.0)
    report = check_plugin(Hangs, checks=["ddp"])
    assert report.failed_checks() == {"ddp"}
    assert "rank 1 did not finish in time" in report.failures[0].message
    monkeypatch.undo()
    assert check_plugin("l2(1e-3)", checks=["ddp"]).passed


def test_what_fails_on_ranks_without_the_plugin_too_is_skipped_and_says_why():
    """The FSDP2 of torch 2.6 does not run on a CPU at all."""
    report = check_plugin(
        "l1(1e-3)", model=Unsharded, batch=tokens, checks=["ddp", "fsdp2", "ranks"]
    )
    assert report.passed, str(report)
    outcomes = {(r.check, r.regime.partition(",")[0]): r.outcome for r in report.results}
    assert outcomes["ddp", "step"] == outcomes["ranks", "ddp"] == "passed"
    assert outcomes["fsdp2", "loss"] == outcomes["ranks", "fsdp2"] == "skipped"
    for result in report.of("skipped"):
        assert result.message.startswith(
            f"without the plugin fsdp2 fails too, with torch {torch.__version__}"
        )
        assert "no streams here" in result.message


def test_a_plugin_that_fails_on_ranks_is_not_excused():
    report = check_plugin(Unshardable, checks=["fsdp2"])
    assert report.failed_checks() == {"fsdp2"}
    assert not report.of("skipped")


def test_a_hook_that_is_never_called_can_not_fail():
    """Weight decay of the plain kind says that nothing is left to do after the update."""
    report = check_plugin("weight_decay(0.1)", checks=["attribution"])
    assert {r.regime: r.outcome for r in report.results} == {
        "inside, as given": "passed",
        "before_step": "passed",
        "after_step": "skipped",
        "an operation of before_step, as given": "passed",
        "an operation of after_step, as given": "skipped",
    }
    assert "nothing to do in after_step" in report.of("skipped")[0].message


def test_a_model_that_can_not_be_sent_to_ranks_is_no_excuse():
    def local():
        return Encoder()

    report = check_plugin("l1(1e-3)", model=local, batch=tokens, checks=["ddp"])
    assert report.failed_checks() == {"ddp"}


class Unsharded(nn.Sequential):
    """Trains in one process and under DDP, but not once it is sharded."""

    def __init__(self):
        super().__init__(nn.Embedding(11, 5), nn.Linear(5, 3))

    def forward(self, x):
        if isinstance(self, FSDPModule):
            raise AttributeError("no streams here")
        return super().forward(x)


class Unshardable(L1):
    """Fails where weights are sharded, while the model alone does not."""

    def __init__(self):
        super().__init__(0.1)

    @regplug.hookimpl
    def on_attach(self, session):
        if isinstance(session.model, FSDPModule):
            raise ValueError("not here")
        return super().on_attach(session)


class Hangs(L1):
    """Waits for what never comes, on rank 1."""

    def __init__(self):
        super().__init__(0.1)

    def value(self, w):
        import time

        import torch.distributed as dist

        if dist.is_initialized() and dist.get_rank() == 1:
            time.sleep(60)
        return super().value(w)


def test_own_model_and_data_are_used():
    report = check_plugin(
        "l1(1e-3, where='encoder.*')", model=Encoder, batch=tokens, checks=FAST_CHECKS
    )
    assert report.passed, str(report)
    assert {"passed"} <= {r.outcome for r in report.results}


FAST_CHECKS = ["every-batch", "untouched", "input-grad", "accumulation", "ddp", "fsdp2"]


def Encoder():  # noqa: N802
    from collections import OrderedDict

    from torch import nn

    layers = [("embed", nn.Embedding(11, 5)), ("encoder", nn.Linear(5, 3)), ("flat", nn.Flatten())]
    return nn.Sequential(OrderedDict(layers))


def tokens(n):
    import torch

    return torch.randint(0, 11, (n, 4))


class TestContract(PluginContract):
    """The contract's own tests are collected and run, here with what is quick."""

    spec = "elastic_net(1e-3, 1e-3)"


class TestContractOfAPluginThatIsNotInstalled(PluginContract):
    spec = SeedPerRank
    expected_failures = {  # noqa: RUF012
        "ranks": "its seed is another on each rank",
        "resume": "its generator starts anew",
    }

    @classmethod
    def examine(cls, *checks):
        report = super().examine(*checks)
        if checks[0] in cls.expected_failures:
            assert report.of("expected")
        return report
