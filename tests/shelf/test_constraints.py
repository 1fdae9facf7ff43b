"""Constraints after the step: Keras' for norms and signs, exact projections for the others."""

import keras
import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn

import regplug
from regplug.errors import SelectionError, SpecError, UnsupportedError
from regplug_builtins import HardThreshold, L1Ball, MaxNorm, NonNegative, UnitNorm

F64 = torch.float64


def keras_kernel(w: torch.Tensor) -> torch.Tensor:
    """(out, in, height, width) as (height, width, in, out), and (out, in) as (in, out)."""
    return w.permute(*range(2, w.ndim), 1, 0)


def torch_weight(kernel: torch.Tensor) -> torch.Tensor:
    return kernel.permute(kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3, 2)])
@pytest.mark.parametrize("groups", ["rows", "columns"])
@pytest.mark.parametrize("kind", ["max_norm", "unit_norm"])
def test_norm_constraints_are_those_of_keras(
    kind: str, groups: str, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    w = torch.randn(shape)
    kernel = keras_kernel(w)
    own = kernel.ndim - 1 if groups == "rows" else kernel.ndim - 2
    axis = [dimension for dimension in range(kernel.ndim) if dimension != own]
    if kind == "max_norm":
        theirs = keras.constraints.MaxNorm(1.5, axis=axis)(kernel)
        ours = MaxNorm(1.5, groups=groups).constrained(w)
    else:
        theirs = keras.constraints.UnitNorm(axis=axis)(kernel)
        ours = UnitNorm(groups=groups).constrained(w)
    # Keras divides by ‖w‖ + 1e-7.
    torch.testing.assert_close(ours, torch_weight(theirs), rtol=1e-6, atol=1e-6)


def test_default_axis_of_keras_dense_is_the_row() -> None:
    torch.manual_seed(0)
    w = torch.randn(5, 4) * 3
    theirs = keras.constraints.MaxNorm(2.0)(w.T).T
    torch.testing.assert_close(MaxNorm(2.0).constrained(w), theirs, rtol=1e-6, atol=1e-6)


def test_non_negative_is_that_of_keras() -> None:
    torch.manual_seed(0)
    w = torch.randn(5, 4)
    assert torch.equal(NonNegative().constrained(w), keras.constraints.NonNeg()(w))


def test_what_already_satisfies_a_constraint_is_left_alone_to_the_bit() -> None:
    torch.manual_seed(0)
    w = torch.randn(5, 4) * 0.1
    assert torch.equal(MaxNorm(2.0).constrained(w), w)
    assert torch.equal(L1Ball(100.0).constrained(w), w)
    assert torch.equal(HardThreshold(1.0).constrained(w), w)
    zero = torch.zeros(2, 3)
    for constraint in (MaxNorm(1.0), MaxNorm(0.0), UnitNorm(), L1Ball(1.0), L1Ball(0.0)):
        assert torch.equal(constraint.constrained(zero), zero)
    assert not MaxNorm(0.0).constrained(w).any()
    assert not L1Ball(0.0).constrained(w).any()


@pytest.mark.parametrize("limit", [1e-6, 0.5, 3.0, 9.0])
def test_the_l1_ball_is_projected_to(limit: float) -> None:
    torch.manual_seed(0)
    w = torch.randn(6, 5, dtype=F64)
    projected = L1Ball(limit).constrained(w)
    sizes = w.abs().numpy()
    # The Lagrange multiplier by root finding, where the plugin sorts.
    theta = brentq(lambda t: np.maximum(sizes - t, 0).sum() - limit, 0, sizes.max(), xtol=1e-15)
    expected = w.sign() * (w.abs() - theta).clamp(min=0)
    torch.testing.assert_close(projected, expected, rtol=1e-9, atol=1e-12)
    assert projected.abs().sum().item() == pytest.approx(limit, rel=1e-12)


@pytest.mark.parametrize(
    ("keep", "count"), [(0.0, 0), (0.1, 1), (0.25, 3), (0.3, 3), (0.31, 4), (1.0, 10)]
)
def test_hard_threshold_keeps_the_largest(keep: float, count: int) -> None:
    torch.manual_seed(0)
    w = torch.randn(2, 5, dtype=F64)
    kept = HardThreshold(keep).constrained(w)
    assert int((kept != 0).sum()) == count
    largest = sorted(w.abs().flatten().tolist(), reverse=True)[:count]
    assert sorted(kept[kept != 0].abs().tolist(), reverse=True) == largest
    assert torch.equal(kept[kept != 0], w[kept != 0])


def test_hard_threshold_breaks_ties_by_order() -> None:
    kept = HardThreshold(0.5).constrained(torch.ones(4))
    assert kept.tolist() == [1, 1, 0, 0]


SPECS = {
    "max_norm": "max_norm(0.5)",
    "unit_norm": "unit_norm()",
    "non_negative": "non_negative()",
    "l1_ball": "l1_ball(1.0)",
    "hard_threshold": "hard_threshold(0.5)",
}


@pytest.mark.parametrize("name", SPECS)
def test_a_session_constrains_after_each_step(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)).double()
    unused = nn.Linear(2, 2).double()
    model.unused = unused
    before = unused.weight.detach().clone()
    bias = [model[0].bias, model[2].bias]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [SPECS[name]]) as session:
        constraint = session.plugins[0]
        for _ in range(3):
            optimizer.zero_grad()
            y = model[2](model[1](model[0](torch.eye(4, dtype=F64))))
            y.square().sum().backward()
            stepped = [w.detach() - 0.1 * w.grad for w in (model[0].weight, model[2].weight, *bias)]
            optimizer.step()
            expected = [constraint.constrained(w) for w in stepped[:2]] + stepped[2:]
            for w, wanted in zip((model[0].weight, model[2].weight, *bias), expected, strict=True):
                torch.testing.assert_close(w.detach(), wanted)
        metrics = session.metrics()
        zeros = torch.cat([model[0].weight.flatten(), model[2].weight.flatten()]) == 0
        # The module that took no part has weights, none of them zero.
        assert metrics[f"{name}/zeros"] == pytest.approx(zeros.sum().item() / (zeros.numel() + 4))
    assert torch.equal(unused.weight, before)


def test_halves_are_projected_in_float32() -> None:
    torch.manual_seed(0)
    model = nn.Linear(64, 2, bias=False, dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, ["max_norm(0.5)"]):
        model(torch.ones(1, 64, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
    sizes = model.weight.detach().double().norm(dim=1)
    torch.testing.assert_close(sizes, torch.full_like(sizes, 0.5), rtol=4e-3, atol=0.0)


def test_a_bound_that_moves_is_the_schedules() -> None:
    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    nn.init.constant_(model.weight, 10.0)
    seen = []
    with regplug.attach(model, optimizer, ["max_norm(linear(4, 2, steps=2))"]) as session:
        for _ in range(3):
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
            seen.append((session.metrics()["max_norm/limit"], model.weight.norm().item()))
    assert [size for _, size in seen] == pytest.approx([4, 3, 2])


def test_wrong_arguments_are_told() -> None:
    for make in (lambda: MaxNorm(-1.0), lambda: L1Ball(float("nan")), lambda: HardThreshold(1.5)):
        with pytest.raises(SpecError):
            make()
    with pytest.raises(SpecError, match="groups must be"):
        UnitNorm(groups="all")
    model = nn.Linear(2, 2)
    with pytest.raises(SelectionError, match="neither rows nor columns"):
        regplug.attach(model, plugins=[MaxNorm(1.0, where="all")])
    with pytest.raises(UnsupportedError, match="LBFGS"):
        regplug.attach(model, torch.optim.LBFGS(model.parameters()), ["non_negative()"])
