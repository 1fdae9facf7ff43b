"""Cautious weight decay against its formula, written out for SGD with momentum and Adam."""

import pytest
import torch
from torch import nn

import regplug
from regplug_builtins import WeightDecay

F64 = torch.float64


def gradients(steps: int) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(steps, 4, 5, dtype=F64) + 0.3


def reference(kind: str, w: torch.Tensor, lr: float, decay: float) -> torch.Tensor:
    w, m, v = w.clone(), torch.zeros_like(w), torch.zeros_like(w)
    for t, g in enumerate(gradients(12), start=1):
        if kind == "sgd":
            m = g.clone() if t == 1 else 0.9 * m + g
            u = m
        else:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            u = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        w = w - lr * (u + decay * w * (u * w >= 0))
    return w


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_cautious_decay_is_the_formula(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 4, bias=False, dtype=F64)
    start = model.weight.detach().clone()
    optimizer = (
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        if kind == "sgd"
        else torch.optim.Adam(model.parameters(), lr=0.05)
    )
    with regplug.attach(model, optimizer, ["weight_decay(0.7, cautious=True)"]):
        for g in gradients(12):
            model.weight.grad = g.clone()
            optimizer.step()
    expected = reference(kind, start, 0.05, 0.7)
    torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(expected, reference(kind, start, 0.05, 0.0))


def test_adamw_does_not_decay_for_a_cautious_plugin() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 4, bias=False, dtype=F64)
    start = model.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.3)
    plugin = WeightDecay(0.7, cautious=True, existing="replace")
    with regplug.attach(model, optimizer, [plugin]) as session:
        assert "cautiously" in session.describe()
        for g in gradients(12):
            model.weight.grad = g.clone()
            optimizer.step()
    expected = reference("adam", start, 0.05, 0.7)
    torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-12, atol=1e-14)
    assert optimizer.param_groups[0]["weight_decay"] == 0.3


def test_a_step_that_raised_leaves_nothing_behind() -> None:
    class Broken(torch.optim.SGD):
        broken = True

        def step(self, closure: object = None) -> None:
            if self.broken:
                raise ZeroDivisionError
            super().step()

    model = nn.Linear(2, 1, bias=False, dtype=F64)
    nn.init.ones_(model.weight)
    optimizer = Broken(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, ["weight_decay(0.5, cautious=True)"]):
        model.weight.grad = torch.ones_like(model.weight)
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
        nn.init.constant_(model.weight, 2.0)
        Broken.broken = False
        optimizer.step()
    expected = torch.full((1, 2), 2.0 - 0.1 - 0.1 * 0.5 * 2.0, dtype=F64)
    torch.testing.assert_close(model.weight.detach(), expected)
