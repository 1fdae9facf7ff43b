"""Wrappers and containers in which it is unclear who updates: refused, with a line to copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import SpecError, UnsupportedError
from tests.backend.wrapping import AGC, LR, Two, agrees, container, loss, net


class Switching(torch.optim.Optimizer):
    """Steps one or the other of two optimizers of the same weights."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        super().__init__(params, {"lr": LR})
        self.adam = torch.optim.Adam(params)
        self.sgd = torch.optim.SGD(params, lr=LR)

    def step(self, closure: Any = None) -> Any:
        return self.adam.step(closure)


class Bundle:
    """Several optimizers with one step, and no optimizer itself."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    def step(self) -> None:
        for part in self.parts:
            part.step()


class Bare(torch.optim.Optimizer):
    """A container that was never initialised as an optimizer, so that its hooks never fire."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts


def unclear() -> list[Any]:
    model = Two()
    parts = container(model).optimizers
    return [
        pytest.param(model, Bundle(*parts), "optimizer.parts", id="no optimizer"),
        pytest.param(model, Bare(parts), "optimizer.parts", id="no hooks"),
        pytest.param(model, parts, "optimizer", id="a list"),
        pytest.param(model, dict(enumerate(parts)), "optimizer.values()", id="a dict"),
    ]


@pytest.mark.parametrize(("model", "optimizer", "parts"), unclear())
def test_a_container_without_hooks_is_refused_with_a_line_to_copy(
    model: nn.Module, optimizer: Any, parts: str
) -> None:
    with pytest.raises((SpecError, UnsupportedError)) as raised:
        regplug.attach(model, optimizer, ["l1(0.3)"])
    line = str(raised.value).split("`")[1]
    scope = {"regplug": regplug, "model": model, "optimizer": optimizer, "plugins": ["l1(0.3)"]}
    assert f"enumerate({parts})" in line
    exec(line, scope)
    assert [session.name for session in scope["sessions"]] == ["part0", "part1"]  # type: ignore[attr-defined]
    for session in scope["sessions"]:  # type: ignore[attr-defined]
        session.detach()


def test_two_optimizers_of_the_same_weights_are_refused_by_their_names() -> None:
    model = net()
    with pytest.raises(UnsupportedError, match=r"Switching .*adam.*sgd"):
        regplug.attach(model, Switching(model.parameters()), ["l1(0.3)"])


class Aloof(torch.optim.Optimizer):
    """Updates by itself, though it holds an optimizer of the same weights."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        super().__init__(params, {"lr": LR})
        self.fallback = torch.optim.SGD(params, lr=LR)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for w in self.param_groups[0]["params"]:
            w.sub_(LR * w.grad)


def test_a_wrapper_that_updates_by_itself_after_all_is_refused_at_its_second_step() -> None:
    model = net()
    optimizer = Aloof(model.parameters())
    with regplug.attach(model, optimizer, ["l1(0.3)"]) as session:
        loss(model).backward()
        optimizer.step()
        with pytest.raises(UnsupportedError, match=r"Aloof .*fallback.*with session.step\(lr=…\)"):
            optimizer.step()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    # The way out that it names:
    model = net()
    optimizer = Aloof(model.parameters())
    with regplug.attach(model, plugins=["l1(0.3)"]) as session:
        loss(model).backward()
        with session.step(lr=LR):
            optimizer.step()
    w = net().weight.detach()
    agrees(model.weight, w - LR * (w + 1 + 0.3 * w.sign()))


def test_nothing_stays_on_a_wrapper_that_passes_its_step_on() -> None:
    model = net()
    optimizer = AGC(model.parameters(), torch.optim.SGD(model.parameters(), lr=LR), 1.0)
    with regplug.attach(model, optimizer, ["l1(0.3)"]) as session:
        for _ in range(3):
            loss(model).backward()
            optimizer.step()
        assert session.steps == 3
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
