"""The step hooks of others: gradients are final after all that come before the update, and weights
are final before all that come after it, whenever each was registered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import regplug
from tests.helpers.compare import close
from tests.helpers.nets import one_layer

LR, STRENGTH = 0.1, 0.15


def net() -> nn.Linear:
    return one_layer(2.0, -3.0)


def backward(model: nn.Module) -> None:
    model.zero_grad()
    model(torch.tensor([[300.0, 400.0]], dtype=torch.float64)).sum().backward()


def clip(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """The gradient (300, 400) becomes (0.6, 0.8)."""
    nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)


CLIPPED = torch.tensor([[0.6, 0.8]], dtype=torch.float64)


def agrees(found: torch.Tensor, expected: torch.Tensor) -> None:
    close(found, expected, atol=1e-6)


def stepped(w: torch.Tensor) -> torch.Tensor:
    return w - LR * (CLIPPED + STRENGTH * w.sign())


@pytest.mark.parametrize("when", ["before", "after", "between two sessions", "everywhere"])
def test_what_is_added_at_the_step_is_not_clipped(when: str) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    handles: list[Any] = []
    if when == "before":
        handles.append(optimizer.register_step_pre_hook(clip))
    specs = [f"l1({STRENGTH / 2})"] * 2 if when == "between two sessions" else [f"l1({STRENGTH})"]
    sessions = []
    for place, spec in enumerate(specs):
        sessions.append(regplug.attach(model, optimizer, [spec], name=f"session{place}"))
        if when in ("after", "between two sessions") and place == 0:
            handles.append(optimizer.register_step_pre_hook(clip))
    if when == "everywhere":
        handles.append(register_optimizer_step_pre_hook(clip))
    try:
        expected = net().weight.detach()
        for _ in range(3):  # from the first step on
            backward(model)
            optimizer.step()
            expected = stepped(expected)
            agrees(model.weight, expected)
    finally:
        for handle in handles:
            handle.remove()
    for session in sessions:
        assert session.steps == 3
        session.detach()


def test_hooks_may_come_and_go_at_any_time() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    called: list[str] = []

    def noting(name: str) -> Callable[..., None]:
        return lambda optimizer, args, kwargs: called.append(name)

    with regplug.attach(model, optimizer, [f"l1({STRENGTH})"]) as session:
        expected = net().weight.detach()
        for step in range(4):
            handles = [optimizer.register_step_pre_hook(clip)]
            handles += [optimizer.register_step_pre_hook(noting(f"{step}{x}")) for x in "ab"]
            backward(model)
            optimizer.step()
            expected = stepped(expected)
            agrees(model.weight, expected)
            for handle in handles:
                handle.remove()
        assert session.steps == 4
    assert called == ["0a", "0b", "1a", "1b", "2a", "2b", "3a", "3b"]
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_a_hook_that_takes_itself_off_is_called_once() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def once(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        handle.remove()
        clip(optimizer, args, kwargs)

    with regplug.attach(model, optimizer, [f"l1({STRENGTH})"]) as session:
        handle = optimizer.register_step_pre_hook(once)
        backward(model)
        optimizer.step()
        agrees(model.weight, stepped(net().weight.detach()))
        before = model.weight.detach().clone()
        backward(model)
        optimizer.step()
        assert session.steps == 2
        assert (before - model.weight.detach()).norm() > 10  # not clipped any more


def test_a_hook_that_raises_leaves_the_next_step_as_it_should_be() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    failing = [True]

    def first(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if failing:
            failing.pop()
            raise ValueError("no luck")

    with regplug.attach(model, optimizer, [f"l1({STRENGTH})"]) as session:
        optimizer.register_step_pre_hook(first)
        optimizer.register_step_pre_hook(clip)
        backward(model)
        with pytest.raises(ValueError, match="no luck"):
            optimizer.step()
        assert session.steps == 0
        backward(model)
        optimizer.step()
        assert session.steps == 1
        agrees(model.weight, stepped(net().weight.detach()))
    assert list(optimizer._optimizer_step_pre_hooks.values()) == [first, clip]


def test_nothing_is_left_behind_by_a_step_that_raised() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def failing(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        raise ValueError("no luck")

    with regplug.attach(model, optimizer, [f"l1({STRENGTH})"]):
        optimizer.register_step_pre_hook(failing)
        optimizer.register_step_pre_hook(clip)
        backward(model)
        with pytest.raises(ValueError, match="no luck"):
            optimizer.step()
    assert list(optimizer._optimizer_step_pre_hooks.values()) == [failing, clip]


def test_a_hook_that_changes_the_arguments_is_heard() -> None:
    """A closure that it puts in place of another is the one that is evaluated and penalized."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def replacing(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(torch.ones(1, 2, dtype=torch.float64)).sum()
            loss.backward()
            return loss

        return (args[0], closure), kwargs

    with regplug.attach(model, optimizer, [f"l1({STRENGTH})"]) as session:
        optimizer.register_step_pre_hook(replacing)
        loss = optimizer.step(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        assert session.steps == 1
    w = net().weight.detach()
    agrees(model.weight, w - LR * (1 + STRENGTH * w.sign()))
    agrees(loss, (w.sum() + STRENGTH * w.abs().sum()))  # type: ignore[arg-type]


@pytest.mark.parametrize("when", ["before", "after", "between two sessions"])
def test_whoever_looks_after_the_step_sees_what_plugins_made_of_the_weights(when: str) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    average: list[torch.Tensor] = []

    def keep(*_: Any) -> None:
        average.append(model.weight.detach().clone())

    if when == "before":
        optimizer.register_step_post_hook(keep)
    first = regplug.attach(model, optimizer, ["max_norm(0.5)"], name="first")
    if when != "before":
        optimizer.register_step_post_hook(keep)
    second = regplug.attach(
        model, optimizer, ["non_negative"] if when == "between two sessions" else [], name="second"
    )
    for _ in range(2):
        backward(model)
        optimizer.step()
        assert torch.equal(average[-1], model.weight.detach())
        assert average[-1].norm() <= 0.5 + 1e-6
    for session in (first, second):
        session.detach()
    assert list(optimizer._optimizer_step_post_hooks.values()) == [keep]


class Noting(regplug.Plugin):
    changes_weights = False

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    @regplug.hookimpl
    def on_gradients(self) -> None:
        self.log.append(f"{self.name} before")

    @regplug.hookimpl
    def after_step(self) -> None:
        self.log.append(f"{self.name} after")


@pytest.mark.parametrize("late", [False, True])
def test_sessions_of_one_optimizer_act_in_the_order_in_which_they_were_attached(late: bool) -> None:
    model, log = net(), list[str]()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    optimizer.register_step_post_hook(lambda *_: log.append("hook after"))
    for name in "abc":
        regplug.attach(model, optimizer, [Noting(name, log)], name=name)
    if late:
        optimizer.register_step_pre_hook(lambda *_: log.append("hook before"))
    expected = ["hook before"] if late else []
    expected += [f"{name} {when}" for when in ("before", "after") for name in "abc"]
    expected += ["hook after"]
    for _ in range(3):
        log.clear()
        backward(model)
        optimizer.step()
        assert log == expected
