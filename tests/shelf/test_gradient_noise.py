"""Gradient noise: its law, and what it is a function of."""

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import SpecError
from regplug_builtins import GradientNoise


def steps(session: regplug.Session, optimizer: torch.optim.Optimizer, count: int) -> torch.Tensor:
    """Return the weight's gradient after each of some steps in which the loss has none."""
    weight = session.model.weight
    added = []
    for _ in range(count):
        optimizer.zero_grad()
        (session.model(torch.ones(1, weight.shape[1])) * 0).sum().backward()
        optimizer.step()
        added.append(weight.grad.clone())
    return torch.stack(added)


def rig(**settings: object) -> tuple[regplug.Session, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(200, 200, dtype=torch.float32)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return regplug.attach(model, optimizer, [GradientNoise(**settings)]), optimizer


def test_the_noise_is_gaussian_and_fades_as_stated() -> None:
    session, optimizer = rig(eta=0.3, gamma=0.55)
    added = steps(session, optimizer, 4).double()
    for t, noise in enumerate(added):
        variance = 0.3 / (1 + t) ** 0.55
        assert noise.var().item() == pytest.approx(variance, rel=0.03)  # 4 deviations of 40000
        assert abs(noise.mean().item()) < 4 * (variance / 40_000) ** 0.5
        kurtosis = (noise**4).mean() / noise.var() ** 2
        assert kurtosis.item() == pytest.approx(3, abs=0.15)
    flat = added.flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.02  # steps are independent


def test_the_noise_depends_on_seed_name_and_step_alone() -> None:
    first = steps(*rig(seed=1), 3)
    torch.randn(7)  # whatever else draws
    assert torch.equal(first, steps(*rig(seed=1), 3))
    assert not torch.equal(first, steps(*rig(seed=2), 3))


def test_two_parameters_of_one_shape_get_different_noise() -> None:
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with regplug.attach(model, optimizer, ["gradient_noise(1.0)"]):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        grads = [p.grad for p in model.parameters()]
    assert not torch.equal(grads[0], grads[2])
    assert not torch.equal(grads[1], grads[3])


def test_a_resumed_run_goes_on_as_if_never_stopped() -> None:
    whole = steps(*rig(), 4)
    session, optimizer = rig()
    steps(session, optimizer, 2)
    state = session.state_dict()
    resumed, optimizer = rig()
    resumed.load_state_dict(state)
    assert torch.equal(whole[2:], steps(resumed, optimizer, 2))


def test_zero_variance_and_missing_gradients_change_nothing() -> None:
    session, optimizer = rig(eta=0.0)
    assert not steps(session, optimizer, 2).any()
    session, optimizer = rig(where="weight")
    steps(session, optimizer, 1)
    assert session.model.bias.grad is not None
    assert not session.model.bias.grad.any()


def test_wrong_arguments_are_told() -> None:
    for settings in ({"eta": -1.0}, {"gamma": -0.5}, {"seed": 0.5}, {"gamma": float("nan")}):
        with pytest.raises(SpecError, match=next(iter(settings))):
            GradientNoise(**settings)
