"""Where AdamW's own update can do the decay, it does: at no cost, and with every meaning kept."""

import copy

import pytest
import torch
from torch import nn

import regplug
from tests.helpers.nets import tanh_net


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> list[torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(16, 4)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.fixture
def model() -> nn.Module:
    return tanh_net(4, 8, 3)


def adamw(model: nn.Module, decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=decay)


def test_whole_groups_are_decayed_by_adamw_itself_bit_for_bit(model: nn.Module) -> None:
    twin = copy.deepcopy(model)
    optimizer = adamw(model, 0.0)
    with regplug.attach(model, optimizer, ["weight_decay(0.1, where='all')"]) as session:
        found = train(model, optimizer)
        assert "AdamW itself" in session.describe()
    expected = train(twin, adamw(twin, 0.1))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_between_steps_the_groups_are_the_users(model: nn.Module) -> None:
    optimizer = adamw(model, 0.3)
    spec = "weight_decay(0.1, where='all', existing='replace')"
    with regplug.attach(model, optimizer, [spec]):
        train(model, optimizer, steps=2)
        assert optimizer.param_groups[0]["weight_decay"] == 0.0
        assert optimizer.state_dict()["param_groups"][0]["weight_decay"] == 0.3
    assert optimizer.param_groups[0]["weight_decay"] == 0.3


def test_scheduled_strength_reaches_the_optimizer_at_each_step(model: nn.Module) -> None:
    twin = copy.deepcopy(model)
    optimizer = adamw(model, 0.0)
    regplug.attach(model, optimizer, ["weight_decay(linear(0.5, 0, steps=4), where='all')"])
    found = train(model, optimizer)
    expected = adamw(twin, 0.0)
    torch.manual_seed(1)
    x = torch.randn(16, 4)
    for step in range(5):
        expected.param_groups[0]["weight_decay"] = max(0.5 - 0.5 * step / 4, 0.0)
        expected.zero_grad()
        twin(x).square().mean().backward()
        expected.step()
    assert all(torch.equal(a, b) for a, b in zip(found, twin.parameters(), strict=True))


def test_a_group_that_is_covered_in_part_is_decayed_by_the_plugin(model: nn.Module) -> None:
    optimizer = adamw(model, 0.0)
    session = regplug.attach(model, optimizer, ["weight_decay(0.1)"])
    assert "before_step" in session.describe()
    twin = copy.deepcopy(model)
    groups = [
        {"params": [p for p in twin.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in twin.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    found = train(model, optimizer)
    train(twin, torch.optim.AdamW(groups, lr=0.01))
    assert all(torch.equal(a, b) for a, b in zip(found, twin.parameters(), strict=True))


def test_a_plugin_that_acts_before_the_step_too_sees_decayed_weights(model: nn.Module) -> None:
    seen = []

    class Watch(regplug.Plugin):
        changes_weights = False

        @regplug.hookimpl
        def before_step(self, session: regplug.Session) -> None:
            seen.append(model[0].weight.detach().clone())

    optimizer = adamw(model, 0.0)
    start = model[0].weight.detach().clone()
    regplug.attach(model, optimizer, ["weight_decay(0.5, where='all')", Watch()])
    train(model, optimizer, steps=1)
    assert torch.equal(seen[0], start * (1 - 0.01 * 0.5))


def test_a_parameter_frozen_with_a_gradient_left_is_not_decayed(model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    regplug.attach(model, optimizer, ["weight_decay(0.5, where='all')"])
    model(torch.randn(16, 4)).square().mean().backward()
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    frozen = model[0].weight
    frozen.requires_grad_(False)
    frozen.grad.zero_()
    before = frozen.detach().clone()
    optimizer.step()
    assert torch.equal(frozen, before)
