"""Loops without an optimizer: the step is said by hand."""

import math

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import (
    RegplugError,
    SpecError,
    UnsupportedError,
)
from tests.session.small_loop import network


def test_step_by_hand_fires_the_step_events():
    """Loops exist whose weights are updated by hand under no_grad."""
    model = nn.Linear(3, 1, bias=False).double()
    start = model.weight.detach().clone()
    session = regplug.attach(
        model, plugins=["l2(0.5)", "weight_decay(0.1)", "l1(0.2, delivery='proximal')"]
    )
    model(torch.ones(1, 3).double()).sum().backward()
    with session.step(lr=0.1), torch.no_grad():
        for w in model.parameters():
            w.sub_(0.1 * w.grad)
    gradient = 1 + 2 * 0.5 * start
    moved = (1 - 0.1 * 0.1) * start - 0.1 * gradient
    expected = moved.sign() * (moved.abs() - 0.1 * 0.2).clamp(min=0)
    torch.testing.assert_close(model.weight.detach(), expected, rtol=0, atol=1e-12)
    assert session.steps == 1


@pytest.mark.parametrize("spec", ["weight_decay(0.1)", "l1(0.1, delivery='proximal')"])
def test_step_by_hand_says_which_plugin_wants_the_learning_rate(spec):
    model = nn.Linear(3, 1)
    session = regplug.attach(model, plugins=[spec])
    model(torch.ones(1, 3)).sum().backward()
    with pytest.raises(RegplugError, match=r"with session.step\(lr=…\)"), session.step():
        pass


def test_step_by_hand_that_raised_is_not_counted():
    model = nn.Linear(3, 1)
    session = regplug.attach(model, plugins=["l1(0.1)"])
    model(torch.ones(1, 3)).sum().backward()
    with pytest.raises(ZeroDivisionError), session.step():
        _ = 1 / 0
    assert session.steps == 0


def test_step_by_hand_beside_an_optimizer_is_refused():
    model = network()
    session = regplug.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ["l1(0.1)"])
    with pytest.raises(UnsupportedError, match="has an optimizer"), session.step():
        pass


@pytest.mark.parametrize("lr", [-0.1, math.nan, "fast"])
def test_step_by_hand_refuses_a_wrong_learning_rate(lr):
    session = regplug.attach(network(), plugins=["l1(0.1)"])
    with pytest.raises(SpecError, match=f"lr .*{lr}"), session.step(lr=lr):
        pass


# Optimizers that call no hooks


def test_loop_by_hand_that_forgets_the_step_is_told():
    model = nn.Linear(2, 1)
    session = regplug.attach(model, plugins=["l1(0.1)"])
    session.loss(model(torch.ones(1, 2)).sum()).backward()
    assert "with session.step():" in session.describe()
