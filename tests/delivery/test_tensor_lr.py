"""A learning rate may be a tensor of one element, of whatever dimensions: torch takes both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn, optim

import regplug
from regplug.errors import SpecError

FORMS = {
    "0-d": torch.tensor,
    "1-d": lambda lr: torch.tensor([lr]),
    "2-d": lambda lr: torch.tensor([[lr]]),
    "float64": lambda lr: torch.tensor([lr], dtype=torch.float64),
}

# What takes a tensor as its learning rate at all, one by one or all tensors together.
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (optim.SGD, {"momentum": 0.5, "dampening": 0.1}),
    "adam": (optim.Adam, {}),
    "amsgrad": (optim.Adam, {"amsgrad": True}),
    "adamw": (optim.AdamW, {"weight_decay": 0.0}),
    "nadam": (optim.NAdam, {}),
    "radam": (optim.RAdam, {"betas": (0.5, 0.6)}),
    "radam, at first": (optim.RAdam, {}),
    "rmsprop": (optim.RMSprop, {"momentum": 0.5}),
    "rmsprop, centered": (optim.RMSprop, {"centered": True, "eps": 0.1}),
    "adagrad": (optim.Adagrad, {"lr_decay": 0.1}),
    "adadelta": (optim.Adadelta, {}),
}

# What multiplies by it, in two sets.
PLUGINS = {
    "decay, l1": ["weight_decay(0.3)", "l1(0.02, delivery='proximal')"],
    "cautious, groups": [
        "weight_decay(0.3, cautious=True)",
        "group_lasso(0.02, delivery='proximal')",
    ],
}


def trained(kind: str, plugins: list[str], lr: Any) -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.Linear(4, 3, dtype=torch.float64)
    made, settings = KINDS[kind]
    optimizer = made(model.parameters(), lr=0.125, foreach=False, **settings)
    for group in optimizer.param_groups:  # as schedulers and scripts do; some refuse it at first
        group["lr"] = lr
    with regplug.attach(model, optimizer, plugins) as session:
        for step in range(4):
            optimizer.zero_grad()
            x = torch.arange(8.0, dtype=torch.float64).view(2, 4) + step
            model(x).square().mean().backward()
            optimizer.step()
        assert "4 steps" in session.describe()
    return model.weight.detach()


@pytest.mark.parametrize("plugins", PLUGINS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_of_one_element_is_the_number(kind: str, plugins: str) -> None:
    expected = trained(kind, PLUGINS[plugins], 0.125)
    for form in FORMS.values():
        found = trained(kind, PLUGINS[plugins], form(0.125))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_a_closed_form() -> None:
    """w ← soft((1 − lr·λ)·w − lr·g, lr·μ) with one element and one dimension."""
    model = nn.Linear(3, 1, bias=False)
    w = model.weight.detach().double()
    optimizer = optim.SGD(model.parameters(), lr=torch.tensor([0.25]))
    plugins = ["weight_decay(0.5)", "l1(0.1, delivery='proximal')"]
    with regplug.attach(model, optimizer, plugins):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    moved = (1 - 0.25 * 0.5) * w - 0.25
    expected = moved.sign() * (moved.abs() - 0.25 * 0.1).clamp(min=0)
    torch.testing.assert_close(model.weight.detach().double(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_by_hand(form: str) -> None:
    found = []
    for lr in (0.125, FORMS[form](0.125)):
        model = nn.Linear(3, 2, bias=False)
        nn.init.constant_(model.weight, 0.5)
        plugins = ["weight_decay(0.5)", "group_lasso(0.1, delivery='proximal')"]
        with regplug.attach(model, plugins=plugins) as session:
            model(torch.ones(1, 3)).sum().backward()
            with session.step(lr=lr), torch.no_grad():
                for p in model.parameters():
                    p.sub_(0.125 * p.grad)  # type: ignore[operator]
        found.append(model.weight.detach())
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(
    "lr",
    [torch.tensor([0.1, 0.1]), torch.tensor([]), torch.tensor(-0.1), torch.tensor([torch.nan])],
)
def test_by_hand_what_is_no_learning_rate_is_refused(lr: torch.Tensor) -> None:
    session = regplug.attach(nn.Linear(2, 1), plugins=["weight_decay(0.5)"])
    with pytest.raises(SpecError, match="lr must be"), session.step(lr=lr):  # type: ignore[arg-type]
        pass
