"""Optimizers that pass their step on: what acts is attached to the one that updates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import regplug
from tests.backend.wrapping import AGC, ASAM, LR, SAM, Lookahead, PCGrad, agrees, loss, net


def sam_gradient(w: torch.Tensor, rho: float = 0.05) -> torch.Tensor:
    return (w + 1) + rho * (w + 1) / (w + 1).norm()


def sam_step(optimizer: SAM, model: nn.Module, form: str) -> None:
    if form == "closure":

        def closure() -> torch.Tensor:
            value = loss(model)
            value.backward()
            return value

        closure()
        optimizer.step(closure)
        optimizer.zero_grad()
        return
    loss(model).backward()
    optimizer.first_step(zero_grad=True)
    loss(model).backward()
    optimizer.second_step(zero_grad=True)


@pytest.mark.parametrize("form", ["two steps", "closure"])
@pytest.mark.parametrize("given", ["outer", "inner"])
def test_sam_takes_penalties_decay_and_constraints_once(form: str, given: str) -> None:
    model = net()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=LR)
    attached = optimizer if given == "outer" else optimizer.base_optimizer
    plugins = ["l1(0.3)", "weight_decay(0.2)", "max_norm(2)"]
    expected = net().weight.detach()
    with regplug.attach(model, attached, plugins) as session:
        assert session.optimizer is optimizer.base_optimizer
        for step in range(3):
            sam_step(optimizer, model, form)
            gradient = sam_gradient(expected) + 0.3 * expected.sign()
            expected = (1 - LR * 0.2) * expected - LR * gradient
            expected = expected * (2 / expected.norm()).clamp(max=1)
            agrees(model.weight, expected)
            assert session.steps == step + 1
        assert "Linear with SGD, 3 steps" in session.describe()


@pytest.mark.parametrize("form", ["two steps", "closure"])
def test_sam_takes_a_proximal_operator(form: str) -> None:
    model = net()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=LR)
    with regplug.attach(model, optimizer, ["l1(2, delivery='proximal')"]):
        sam_step(optimizer, model, form)
    w = net().weight.detach()
    w = w - LR * sam_gradient(w)
    agrees(model.weight, w.sign() * (w.abs() - LR * 2).clamp(min=0))


def test_a_schedulers_learning_rate_reaches_what_sam_holds() -> None:
    model = net()
    optimizer = SAM(model.parameters(), torch.optim.AdamW, lr=LR, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    session = regplug.attach(model, optimizer, ["weight_decay(0.2)"])
    reference = net()
    other = SAM(reference.parameters(), torch.optim.AdamW, lr=LR, weight_decay=0.2)
    others = torch.optim.lr_scheduler.StepLR(other, 1, gamma=0.5)
    for _ in range(3):
        sam_step(optimizer, model, "two steps")
        sam_step(other, reference, "two steps")
        for each in (scheduler, others):
            each.optimizer._opt_called = True  # type: ignore[attr-defined]
            each.step()
    optimizer.load_state_dict(optimizer.state_dict())
    sam_step(optimizer, model, "two steps")
    sam_step(other, reference, "two steps")
    assert session.steps == 4
    agrees(model.weight, reference.weight.detach())


def test_what_is_no_optimizer_itself_is_seen_through() -> None:
    for asam in (False, True):
        model = net()
        inner = torch.optim.SGD(model.parameters(), lr=LR)
        outer: Any = ASAM(inner, model) if asam else PCGrad(inner)
        with regplug.attach(model, outer, ["l1(0.3)"]) as session:
            assert session.optimizer is inner
            loss(model).backward()
            inner.step()
            assert session.steps == 1
        w = net().weight.detach()
        agrees(model.weight, w - LR * (w + 1 + 0.3 * w.sign()))


def test_a_wrapper_that_clips_does_not_clip_what_is_added() -> None:
    model = net()
    inner = torch.optim.SGD(model.parameters(), lr=LR)
    with regplug.attach(model, AGC(model.parameters(), inner, 1.0), ["l1(0.3)"]) as session:
        assert session.optimizer is inner


@pytest.mark.parametrize("hooks", [False, True])
def test_lookahead_is_seen_through(hooks: bool) -> None:
    model = net()
    inner = torch.optim.AdamW(model.parameters(), lr=LR)
    outer = Lookahead(inner, hooks)
    spec = "weight_decay(0.5, existing='replace')"
    with regplug.attach(model, outer, [spec]) as session:
        assert session.optimizer is inner
        model.weight.grad = torch.zeros_like(model.weight)
        outer.step()
        assert session.steps == 1
    agrees(model.weight, net().weight.detach() * (1 - LR * 0.5))


def test_wrappers_of_wrappers_are_seen_through() -> None:
    from accelerate import Accelerator

    model = net()
    sam = SAM(model.parameters(), torch.optim.SGD, lr=LR)
    clipping = AGC(model.parameters(), sam, 1.0)
    prepared = Accelerator(cpu=True).prepare_optimizer(clipping)
    for outer in (prepared, Lookahead(clipping, hooks=True)):
        with regplug.attach(model, outer, ["l1(0.3)"]) as session:
            assert session.optimizer is sam.base_optimizer
