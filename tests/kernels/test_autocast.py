"""Under autocast formulas are computed with as outside of it: to the bit."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

import regplug
from regplug.schedules import constant
from regplug_builtins import Orthogonal, SpectralNorm


class Frobenius(regplug.Penalty):
    """A stranger's formula, of matrix products."""

    def value(self, w):
        return (w @ w.T - torch.eye(len(w))).square().sum()

    def proximal(self, w, step):
        return w - step * self.strength * (w @ w.T @ w)


class Whitened(regplug.Plugin):
    """A stranger's plugin that acts in every event by itself."""

    def _product(self, session):
        w = session.model[0].weight
        return w @ w.T

    @regplug.hookimpl
    def on_loss(self, session):
        return self._product(session).square().mean()

    @regplug.hookimpl
    def on_gradients(self, session):
        w = session.model[0].weight
        w.grad += self._product(session) @ w

    @regplug.hookimpl
    def before_step(self, session):
        w = session.model[0].weight
        w.copy_(w - 1e-3 * self._product(session) @ w)

    @regplug.hookimpl
    def after_step(self, session):
        w = session.model[0].weight
        w.copy_(w - 1e-3 * self._product(session) @ w)

    @regplug.hookimpl
    def on_metrics(self, session):
        return {"trace": self._product(session).trace()}


def trained(plugin, place, *, closure=False):
    """Return the loss, weights and metrics after three steps whose ``place`` is inside autocast."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 32, bias=False), nn.Linear(32, 1, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def within(name):
        return torch.autocast("cpu", torch.bfloat16) if name in place else nullcontext()

    with regplug.attach(model, optimizer, [plugin]) as session:
        for _ in range(3):
            optimizer.zero_grad()
            # The loop's own part has no matrix product, which autocast would rightly round.
            loss = sum((w.sin() * w).mean() for w in model.parameters())
            with within("loss"):
                loss = session.loss(loss)
            with within("backward"):
                loss.backward()
            with within("step"):
                optimizer.step(*[lambda loss=loss: loss] * closure)
        with within("metrics"):
            figures = session.metrics()
            assert torch.is_autocast_enabled("cpu") == ("metrics" in place)
    return loss.detach(), model[0].weight.detach().clone(), figures


PLUGINS = {
    "orthogonal in the loss": lambda: Orthogonal(0.3, delivery="loss"),
    "orthogonal at the step": lambda: Orthogonal(0.3, delivery="step"),
    "spectral norm in the loss": lambda: SpectralNorm(0.3, delivery="loss"),
    "spectral norm at the step": lambda: SpectralNorm(constant(0.3), delivery="step"),
    "another's in the loss": lambda: Frobenius(0.01, delivery="loss"),
    "another's at the step": lambda: Frobenius(0.01, delivery="step"),
    "another's by proximal operator": lambda: Frobenius(0.01, delivery="proximal"),
    "another's plugin": Whitened,
}


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_formulas_are_those_of_outside(plugin, closure):
    make = PLUGINS[plugin]
    places = ("loss", "backward", "step", "metrics")
    if plugin == "another's plugin":  # whose own graph torch goes back through as it will
        places = ("loss", "step", "metrics")
    plain = trained(make(), (), closure=closure)
    found = trained(make(), places, closure=closure)
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[1], plain[1])
    assert found[2] == plain[2]


def test_a_gradient_that_is_differentiated_in_turn_is_that_of_outside():
    weights = []
    for inside in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(48, 32, bias=False)
        session = regplug.attach(model, plugins=[Frobenius(0.01, delivery="loss")])
        with torch.autocast("cpu", torch.bfloat16) if inside else nullcontext():
            loss = session.loss(torch.zeros((), requires_grad=True))
            (first,) = torch.autograd.grad(loss, model.weight, create_graph=True)
        weights.append(first.detach())
    assert torch.equal(*weights)


def test_the_loops_own_autocast_goes_on():
    model = nn.Linear(4, 4)
    session = regplug.attach(model, plugins=["orthogonal(0.1, delivery='loss')"])
    with torch.autocast("cpu", torch.bfloat16):
        loss = session.loss(model(torch.randn(2, 4)).float().mean())
        assert model(torch.randn(2, 4)).dtype is torch.bfloat16
    assert loss.dtype is torch.float32


def test_an_error_leaves_autocast_on():
    class Fails(regplug.Penalty):
        def value(self, w):
            raise ValueError("a bad day")

    session = regplug.attach(nn.Linear(2, 1), plugins=[Fails(0.1, delivery="loss")])
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(regplug.errors.PluginError, match="a bad day"):
            session.loss(torch.zeros(()))
        assert torch.is_autocast_enabled("cpu")
