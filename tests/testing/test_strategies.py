"""An author's own cases: a model, a loss and a selection of theirs, and strategies to draw from."""

import pytest
import torch
from hypothesis import find, given, settings
from torch import nn

from regplug.testing import PluginContract, check_plugin, strategies


@settings(max_examples=60, deadline=None)
@given(strategies.weights(), strategies.steps())
def test_weights_are_finite_and_small(w, step):
    assert w.dtype == torch.float64
    assert w.isfinite().all()
    assert 1 <= w.numel() <= 64
    assert step >= 0


@pytest.mark.parametrize(
    "wanted",
    [
        lambda w: w.ndim == 0,
        lambda w: w.ndim == 4,
        lambda w: not w.is_contiguous(),
        lambda w: w.numel() > 1 and bool((w == 0).all()),
    ],
)
def test_what_formulas_stumble_over_is_drawn(wanted):
    assert wanted(find(strategies.weights(), wanted, settings=settings(max_examples=3000)))


def pairs():
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))


def cross_entropy(out, x):
    return nn.functional.cross_entropy(out, (x.sum(1) > 0).long())


def no_loss(out, x):
    raise ZeroDivisionError("the loss that was given")


class TestOwnCase(PluginContract):
    spec = "l1(1e-3)"
    model = pairs
    loss = cross_entropy
    where = "2.*"

    @classmethod
    def examine(cls, *checks):
        if checks[0] not in ("runs", "acts", "untouched"):
            pytest.skip("three will do")
        report = super().examine(*checks)
        assert report.of("passed")
        return report


def test_own_loss_and_selection_are_used():
    report = check_plugin("l1(1e-3)", loss=no_loss, checks=["runs"])
    assert "the loss that was given" in report.cause.message
    unused = check_plugin("l1(1e-3)", model=pairs, where="2.bias", checks=["acts"])
    assert unused.passed, str(unused)
