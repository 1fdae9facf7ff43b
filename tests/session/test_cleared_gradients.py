"""Who takes part in a step is known before it: gradients that are cleared within it change nothing.

Every case trains one step of w ← w − lr·g with g = 2 and looks at closed forms.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
)

import regplug
from regplug_builtins import L1
from tests.helpers.compare import close
from tests.helpers.nets import one_layer

LR = 0.1


class Clearing(torch.optim.SGD):
    """Its step ends by clearing gradients, after its parent's."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        self.zero_grad()
        return loss


class Freeing(torch.optim.Optimizer):
    """Frees each gradient as soon as it is used."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    w.sub_(group["lr"] * w.grad)
                    w.grad = None


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LR)


def hooked(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = sgd(model)
    optimizer.register_step_post_hook(lambda optimizer, args, kwargs: optimizer.zero_grad())
    return optimizer


def nested(model: nn.Module) -> torch.optim.Optimizer:
    """Its parent's step fires the hooks too, before its own is over."""

    class Outer(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    optimizer = Outer(model.parameters(), lr=LR)
    optimizer.register_step_post_hook(lambda optimizer, args, kwargs: optimizer.zero_grad())
    return optimizer


CLEARED: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "by a hook": hooked,
    "by a hook of a nested step": nested,
    "after the parent's step": lambda model: Clearing(model.parameters(), lr=LR),
    "one by one": lambda model: Freeing(model.parameters(), {"lr": LR}),
}


def net() -> nn.Linear:
    return one_layer(1.0, 0.1, -2.0)


def backward(model: nn.Module) -> None:
    model(torch.full((1, 3), 2.0, dtype=torch.float64)).sum().backward()


MOVED = torch.tensor([[0.8, -0.1, -2.2]], dtype=torch.float64)


def agrees(model: nn.Linear, expected: torch.Tensor) -> None:
    close(model.weight, expected)


@pytest.mark.parametrize("cleared", CLEARED)
@pytest.mark.parametrize("by_closure", [False, True], ids=["", "closure"])
def test_constraints_act(cleared: str, by_closure: bool) -> None:
    model = net()
    optimizer = CLEARED[cleared](model)
    with regplug.attach(model, optimizer, ["non_negative", "max_norm(0.5)"]) as session:
        if by_closure:
            optimizer.step(lambda: backward(model))  # type: ignore[arg-type]
        else:
            backward(model)
            optimizer.step()
        assert model.weight.grad is None
        assert session.steps == 1
    agrees(model, torch.tensor([[0.5, 0.0, 0.0]], dtype=torch.float64))


def soft(w: torch.Tensor, by: float) -> torch.Tensor:
    return w.sign() * (w.abs() - by).clamp(min=0)


@pytest.mark.parametrize("early", [True, False], ids=["before attach", "after attach"])
def test_proximal_operators_act(early: bool) -> None:
    model = net()
    optimizer = hooked(model) if early else sgd(model)
    with regplug.attach(model, optimizer, ["l1(2.0, delivery='proximal')"]):
        if not early:
            optimizer.register_step_post_hook(lambda optimizer, args, kwargs: optimizer.zero_grad())
        backward(model)
        optimizer.step()
    agrees(model, soft(MOVED, LR * 2.0))


@pytest.fixture
def clearing_everywhere() -> Iterator[None]:
    handle = register_optimizer_step_post_hook(
        lambda optimizer, args, kwargs: optimizer.zero_grad()
    )
    yield
    handle.remove()


@pytest.mark.usefixtures("clearing_everywhere")
def test_a_hook_on_all_optimizers_changes_nothing() -> None:
    model = net()
    optimizer = sgd(model)
    with regplug.attach(model, optimizer, ["l1(2.0, delivery='proximal')"]):
        backward(model)
        optimizer.step()
    agrees(model, soft(MOVED, LR * 2.0))


@pytest.mark.parametrize("kind", ["Adam", "Adadelta", "RMSprop"])
@pytest.mark.parametrize("to_none", [True, False], ids=["None", "zeros"])
def test_steps_for_each_element_are_those_of_the_gradient_that_was_used(
    kind: str, to_none: bool
) -> None:
    """Adadelta's proximal step is computed from the gradient itself."""

    def trained(clear: bool) -> torch.Tensor:
        model = net()
        optimizer = getattr(torch.optim, kind)(model.parameters(), lr=LR)
        if clear:
            optimizer.register_step_post_hook(
                lambda optimizer, args, kwargs: optimizer.zero_grad(set_to_none=to_none)
            )
        with regplug.attach(model, optimizer, ["l1(0.3, delivery='proximal')"]):
            for _ in range(3):
                optimizer.zero_grad()
                backward(model)
                optimizer.step()
        return model.weight.detach()

    assert torch.equal(trained(True), trained(False))
    assert not torch.equal(trained(True), net().weight.detach())


@pytest.mark.parametrize("to_none", [True, False], ids=["None", "kept"])
def test_a_hand_written_update_that_clears_as_it_goes(to_none: bool) -> None:
    model = net()
    plugins = ["l1(2.0, delivery='proximal')", "non_negative"]
    with regplug.attach(model, plugins=plugins) as session:
        backward(model)
        with session.step(lr=LR), torch.no_grad():
            for w in model.parameters():
                w.sub_(LR * w.grad)  # type: ignore[operator]
                if to_none:
                    w.grad = None
        assert session.steps == 1
    agrees(model, soft(MOVED, LR * 2.0).clamp(min=0))


@pytest.mark.parametrize("cleared", CLEARED)
def test_what_had_no_gradient_takes_no_part(cleared: str) -> None:
    model = nn.ModuleList([net(), net()])
    optimizer = CLEARED[cleared](model)
    with regplug.attach(model, optimizer, ["non_negative"]):
        for taking in (0, 1):
            backward(model[taking])
            optimizer.step()
            if taking == 0:
                agrees(model[1], net().weight.detach())  # type: ignore[arg-type]
        for each in model:
            agrees(each, MOVED.clamp(min=0))  # type: ignore[arg-type]


def test_plugins_of_others_are_given_the_gradients() -> None:
    class Last(regplug.Plugin):
        changes_weights = False

        @regplug.hookimpl
        def after_step(self, session: regplug.Session) -> None:
            for _, _, gradients in session.updates(regplug.Selection("weights")):
                seen.extend(g.clone() for g in gradients)

    seen: list[torch.Tensor] = []
    model = net()
    optimizer = Freeing(model.parameters(), {"lr": LR})
    with regplug.attach(model, optimizer, [Last()]):
        backward(model)
        optimizer.step()
    assert [g.tolist() for g in seen] == [[[2.0, 2.0, 2.0]]]


def test_gradients_are_not_held_on_to() -> None:
    model = net()
    optimizer = Freeing(model.parameters(), {"lr": LR})
    with regplug.attach(model, optimizer, [L1(0.1), "non_negative"]):
        backward(model)
        gradient = weakref.ref(model.weight.grad)  # type: ignore[arg-type]
        optimizer.step()
        gc.collect()
        assert gradient() is None
