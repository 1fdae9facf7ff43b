"""Containers of optimizers: each part by its own learning rate, one step for all."""

from __future__ import annotations

import pytest
import torch

import regplug
from regplug.errors import SpecError
from tests.backend.wrapping import LR, Container, Two, agrees, container, loss, net
from tests.helpers.loops import zero_step


def test_the_learning_rate_is_that_of_the_part() -> None:
    model = Two()
    optimizer = container(model)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(part, lambda step, k=k: (1 + k) / (1 + step))  # type: ignore[misc]
        for k, part in enumerate(optimizer.optimizers)
    ]
    expected = [net().weight.detach() for _ in range(2)]
    with regplug.attach(model, optimizer, ["weight_decay(0.5)"]) as session:
        for step in range(3):
            zero_step(model, optimizer)
            for k, m in enumerate((model.a, model.b)):
                expected[k] = expected[k] * (1 - 0.5 * LR * (1 + k) / (1 + step))
                agrees(m.weight, expected[k])
            for scheduler in schedulers:
                scheduler.step()
        assert session.steps == 3


def test_decay_that_is_replaced_is_that_of_the_parts_and_comes_back() -> None:
    model = Two()
    optimizer = container(model, weight_decay=0.4)
    with pytest.raises(SpecError, match=r"weight_decay=0\.4"):
        regplug.attach(model, optimizer, ["weight_decay(0.5)"])
    with regplug.attach(model, optimizer, ["weight_decay(0.5, existing='replace')"]):
        zero_step(model, optimizer)
        for m in (model.a, model.b):
            agrees(m.weight, net().weight.detach() * (1 - 0.5 * LR))
    assert [part.param_groups[0]["weight_decay"] for part in optimizer.optimizers] == [0.4, 0.4]


def test_a_container_of_one_is_that_one() -> None:
    model = net()
    inner = torch.optim.Adam(model.parameters(), lr=LR)
    optimizer = Container([inner])
    with regplug.attach(model, optimizer, ["l1(0.3, delivery='proximal')"]) as session:
        assert session.optimizer is inner
        loss(model).backward()
        optimizer.step()
        assert session.steps == 1


def test_penalties_of_a_container_act_once_a_step() -> None:
    model = Two()
    optimizer = container(model)
    with regplug.attach(model, optimizer, ["l1(0.3)", "non_negative"]) as session:
        zero_step(model, optimizer)
        assert session.steps == 1
        w = net().weight.detach()
        for m in (model.a, model.b):
            agrees(m.weight, (w - LR * 0.3 * w.sign()).clamp(min=0))


def test_a_maximizing_part_shrinks_all_the_same() -> None:
    model = Two()
    optimizer = container(model, maximize=True)
    optimizer.param_groups[0]["maximize"] = False  # a copy that nobody reads
    with regplug.attach(model, optimizer, ["l1(0.3)"]):
        zero_step(model, optimizer)
        w = net().weight.detach()
        agrees(model.a.weight, w - LR * 0.3 * w.sign())
