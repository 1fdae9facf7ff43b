"""What holds inside an event: the gradient mode, and gradients after clipping."""

import pytest
import torch

import regplug
from regplug import hookimpl


def test_gradient_mode_is_off_in_step_events_and_the_loops_own_in_the_loss_event(model):
    seen = []

    class Modes(regplug.Plugin):
        changes_weights = False

        @hookimpl
        def on_loss(self):
            seen.append(("on_loss", torch.is_grad_enabled()))

        @hookimpl
        def on_gradients(self):
            seen.append(("on_gradients", torch.is_grad_enabled()))

        @hookimpl
        def before_step(self):
            seen.append(("before_step", torch.is_grad_enabled()))

        @hookimpl
        def after_step(self):
            seen.append(("after_step", torch.is_grad_enabled()))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, [Modes()])
    session.loss(model(torch.ones(1, 3)).sum()).backward()
    optimizer.step()
    with torch.no_grad():
        session.loss(torch.tensor(0.0))
    assert torch.is_grad_enabled()
    assert seen == [
        ("on_loss", True),
        ("on_gradients", False),
        ("before_step", False),
        ("after_step", False),
        ("on_loss", False),
    ]


def test_closure_runs_with_the_gradient_mode_that_the_optimizer_chose(model):
    modes = []
    for optimizer in (
        torch.optim.LBFGS(model.parameters(), max_iter=1),
        torch.optim.Adam(model.parameters()),
    ):
        regplug.attach(model, optimizer, ["l2(0.1)"])

        def closure():
            modes.append(torch.is_grad_enabled())
            loss = model(torch.ones(1, 3)).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    assert modes
    assert all(modes)


def test_gradients_are_seen_after_clipping(model):
    seen = []

    class Norm(regplug.Plugin):
        @hookimpl
        def on_gradients(self, session):
            grads = [w.grad for w in session.model.parameters()]
            seen.append(torch.nn.utils.get_total_norm(grads).item())

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, [Norm()])
    (1000 * model(torch.ones(1, 3))).sum().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert seen == [pytest.approx(1.0, abs=1e-5)]
