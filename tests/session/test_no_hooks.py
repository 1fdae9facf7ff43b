"""Optimizers that call no hooks, and loops that step another than is attached to."""

import warnings

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import (
    UnsupportedError,
)
from tests.helpers.optimizers import Lookahead
from tests.session.small_loop import network, train


def test_wrapper_whose_hooks_never_fire_is_attached_to_inside():
    """timm's Lookahead accepts a step hook and never calls it."""
    model = network()
    lookahead = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1))
    fired = []
    lookahead.register_step_pre_hook(lambda *_: fired.append(True))
    session = regplug.attach(model, lookahead, ["l1(0.1)"])
    train(model, lookahead, 3)
    assert fired == []
    assert session.steps == 3
    assert session.optimizer is lookahead._base_optimizer


def test_wrapper_with_nothing_usable_inside_is_refused():
    class Opaque(Lookahead):
        def __init__(self, base):
            super().__init__(base)
            self.hidden = self.__dict__.pop("_base_optimizer")

    model = network()
    with pytest.raises(UnsupportedError, match=r"Opaque never calls .*step hooks.*it wraps"):
        regplug.attach(model, Opaque(torch.optim.SGD(model.parameters(), lr=0.1)), ["l1(0.1)"])


def test_loop_that_steps_another_optimizer_is_told():
    """Backward passes come through the loss event, and no step event ever fires."""
    model = nn.Linear(2, 1)
    attached, stepped = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    session = regplug.attach(model, attached, ["l1(0.1)"])
    assert "no step was seen" not in session.describe()

    def pass_and_step(optimizer):
        session.loss(model(torch.ones(1, 2)).sum()).backward()
        optimizer.step()

    pass_and_step(stepped)
    assert "1 backward passes came through the loss event" in session.describe()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(600):
            pass_and_step(stepped)
    assert len(told) == 1
    assert "attach to the optimizer whose step() the loop calls" in str(told[0].message)
    pass_and_step(attached)
    assert "no step was seen" not in session.describe()
