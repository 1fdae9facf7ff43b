"""Halves: sums that would overflow, and strengths that round away."""

import pytest
import torch
from torch import nn

import regplug
from tests.delivery.written_out import LR


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_of_halves_accumulate_in_float32(dtype):
    """p.half().abs().sum() over a million times 0.1 is inf."""
    model = nn.Linear(1000, 1000, bias=False).to(dtype)
    nn.init.constant_(model.weight, 0.1)
    exact = model.weight.detach().double()
    for session, expected in (
        (regplug.attach(model, plugins=["l1(1)"]), exact.sum().item()),
        (regplug.attach(model, plugins=["l2(1)"]), exact.square().sum().item()),
    ):
        (metric,) = (v for key, v in session.metrics().items() if key.endswith("/value"))
        assert metric == pytest.approx(expected, rel=1e-5)
        total = session.loss(torch.zeros((), dtype=torch.float32))
        assert total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_strength_that_rounds_away_in_halves_is_told_once(dtype):
    model = nn.Linear(20, 20, bias=False).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    regplug.attach(model, optimizer, ["l1(1e-5)"])
    model.weight.grad = torch.ones_like(model.weight)
    with pytest.warns(UserWarning, match="l1: most of what it adds rounds away"):
        optimizer.step()
    optimizer.step()  # a second warning would be an error here


def test_strength_that_survives_in_halves_is_not_told():
    """Catches a warning, which would be an error here."""
    model = nn.Linear(20, 20, bias=False).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    regplug.attach(model, optimizer, ["l1(0.5)"])
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
