"""The contract is checked when a plugin is attached, and then holds."""

import pytest
import torch

import regplug
from regplug import hookimpl
from regplug.errors import PluginError, SpecError
from regplug_builtins import L1, L2


def test_hook_that_asks_for_an_unknown_argument_is_refused(model):
    class Asks(regplug.Plugin):
        @hookimpl
        def on_gradients(self, session, weather):
            raise AssertionError

    with pytest.raises(PluginError, match=r"asks .*breaks the hook contract(.|\n)*weather"):
        regplug.attach(model, plugins=[Asks()])


def test_hook_without_the_marker_is_refused(model):
    class Forgets(regplug.Plugin):
        def after_step(self, session):
            raise AssertionError

    with pytest.raises(PluginError, match=r"forgets .*after_step .*@regplug.hookimpl"):
        regplug.attach(model, plugins=[Forgets()])


def test_hook_that_does_not_exist_is_refused(model):
    class Invents(regplug.Plugin):
        @hookimpl
        def on_tuesday(self, session):
            raise AssertionError

    with pytest.raises(PluginError, match=r"invents .*breaks the hook contract(.|\n)*on_tuesday"):
        regplug.attach(model, plugins=[Invents()])


def test_hooks_of_a_penalty_that_are_written_anew_are_called_whatever_its_delivery(model):
    """A penalty is not called for deliveries that are not its own; what others add to it is."""
    seen = []

    class Watched(L1):
        @hookimpl
        def after_step(self, session):
            seen.append("of the class")
            super().after_step(session)

    own = L2(0.1, delivery="step")
    own.after_step = hookimpl(lambda session: seen.append("of the instance"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [Watched(0.1), own]):
        for _ in range(2):
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
    assert seen == ["of the class", "of the instance"] * 2


def test_delivery_of_an_attached_penalty_does_not_change(model):
    """Which events it is called in is settled; the next attach is free to settle anew."""
    penalty = L1(0.1, delivery="step")
    session = regplug.attach(model, plugins=[penalty])
    with pytest.raises(SpecError, match="l1 is attached"):
        penalty.delivery = "proximal"
    session.detach()
    penalty.delivery = "proximal"
    assert penalty.delivery == "proximal"
