"""One real step is one firing, and what is no step fires nothing."""

import copy

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import regplug
from regplug import hookimpl
from regplug.errors import PluginError
from tests.session.watching import ONE_STEP, Watch, backward, watched


class Subclass(torch.optim.SGD):
    """Its step does something and then calls its parent's, as many a paper's code does."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["seen"] = group.get("seen", 0) + 1
        return super().step(closure)


class Grandchild(Subclass):
    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("kind", [Subclass, Grandchild])
@pytest.mark.parametrize("with_closure", [False, True])
def test_step_that_calls_its_parents_fires_once(model, log, kind, with_closure):
    """A subclass whose step calls super().step() fires the hooks of each class on the way.

    It does so once any instance of the base class exists.
    """
    for base in kind.__mro__[1:-2]:
        if base is not torch.optim.Optimizer:
            base(model.parameters(), lr=0.1)
    optimizer = kind(model.parameters(), lr=0.1)
    session = watched(model, optimizer, log)
    for step in range(3):
        if with_closure:
            optimizer.step(lambda: backward(model))
        else:
            backward(model)
            optimizer.step()
        assert session.steps == step + 1
    assert sum("after_step" in line for line in log) == 3
    assert sum("before_step" in line for line in log) == 3
    assert sum("on_gradients" in line for line in log) == 3


def test_step_that_raised_may_be_repeated(model, log):
    class Flaky(Subclass):
        broken = True

        def step(self, closure=None):
            if self.broken:
                raise OSError("the disk is full")
            return super().step(closure)

    torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = Flaky(model.parameters(), lr=0.1)
    session = watched(model, optimizer, log)
    backward(model)
    for _ in range(2):
        with pytest.raises(OSError, match="disk"):
            optimizer.step()
    optimizer.broken = False
    assert session.steps == 0
    log.clear()
    optimizer.step()
    assert log == ONE_STEP
    optimizer.step()
    assert session.steps == 2


def test_step_whose_closure_raised_may_be_repeated(model, log):
    optimizer = Subclass(model.parameters(), lr=0.1)
    session = watched(model, optimizer, log)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert (log, session.steps) == ([], 0)
    optimizer.step(lambda: backward(model))
    backward(model)
    optimizer.step()
    assert session.steps == 2


def test_step_in_which_a_plugin_raised_may_be_repeated(model, log):
    class Touchy(regplug.Plugin):
        patience = 0

        @hookimpl
        def before_step(self, session):
            self.patience += 1
            if self.patience == 1:
                raise ArithmeticError("not now")

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, [Touchy(), Watch("a", log)])
    backward(model)
    before = model.weight.detach().clone()
    with pytest.raises(PluginError, match="not now"):
        optimizer.step()
    assert session.steps == 0
    assert torch.equal(model.weight, before)
    log.clear()
    optimizer.step()
    assert log == ONE_STEP
    assert session.steps == 1


def test_learning_rate_scheduler_around_the_step_changes_nothing(model, log):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    watched(model, optimizer, log)
    backward(model)
    optimizer.step()
    scheduler.step()
    assert log == ONE_STEP


# Steps that are none


def test_step_without_any_gradient_is_none(model, log):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = watched(model, optimizer, log)
    optimizer.step()
    optimizer.step(lambda: None)
    assert (log, session.steps) == ([], 0)


def test_step_that_makes_optimizer_state_for_a_checkpoint_is_none(model, log):
    """get_optimizer_state_dict calls step() with lr 0 and zero gradients to make state.

    A proximal plugin that took it for a step would change the weights inside a checkpoint call.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    session = regplug.attach(
        model, optimizer, ["l1(10.0, delivery='proximal', where='all')", Watch("a", log)]
    )
    log.clear()
    before = copy.deepcopy(model.state_dict())
    saved = get_optimizer_state_dict(model, optimizer)
    assert saved["state"], "torch made no state, so this test shows nothing"
    assert (log, session.steps) == ([], 0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    backward(model)
    optimizer.step()
    assert log == ONE_STEP


def test_first_step_of_a_warm_up_is_real(model, log):
    """It has lr 0 too, but real gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session = watched(model, optimizer, log)
    backward(model)
    optimizer.step()
    assert log == ONE_STEP
    assert session.steps == 1


def test_zero_gradients_at_a_learning_rate_are_a_real_step(model, log):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watched(model, optimizer, log)
    for w in model.parameters():
        w.grad = torch.zeros_like(w)
    optimizer.step()
    assert log == ONE_STEP
