"""The group lasso against closed forms, a numeric minimiser and a group-lasso solver."""

import pytest
import torch
from scipy.optimize import minimize
from torch import nn

import regplug
from regplug.errors import SelectionError, SpecError
from regplug_builtins import GroupLasso
from regplug_builtins.group_lasso import shrink_groups

F64 = torch.float64


def objective(u: torch.Tensor, w: torch.Tensor, c: float, s: torch.Tensor) -> torch.Tensor:
    return ((u - w) ** 2 / (2 * s)).sum() + c * torch.linalg.vector_norm(u)


@pytest.mark.parametrize("seed", range(6))
def test_the_proximal_operator_with_a_step_for_each_element_minimises(seed: int) -> None:
    torch.manual_seed(seed)
    w = torch.randn(1, 5, dtype=F64)
    s = torch.rand(1, 5, dtype=F64).mul(6).exp().mul(0.01)  # over two and a half decades
    c = 0.8
    found = shrink_groups(w, c, s)

    def value(u: list[float]) -> float:
        return objective(torch.tensor(u, dtype=F64), w[0], c, s[0]).item()

    def slope(u: list[float]) -> list[float]:
        x = torch.tensor(u, dtype=F64, requires_grad=True)
        (g,) = torch.autograd.grad(objective(x, w[0], c, s[0]), x)
        return g.tolist()

    numeric = minimize(value, w[0].tolist(), jac=slope, method="BFGS", options={"gtol": 1e-12})
    best = torch.tensor(numeric.x, dtype=F64)
    assert value(found[0].tolist()) <= min(numeric.fun, value([0.0] * 5)) + 1e-12
    if found.any():
        torch.testing.assert_close(found[0], best, rtol=1e-5, atol=1e-6)


def test_the_proximal_operator_is_stationary_where_groups_live_and_zero_where_they_must() -> None:
    torch.manual_seed(0)
    w = torch.randn(300, 7, dtype=F64) * torch.rand(300, 1, dtype=F64).mul(14).sub(9).exp()
    s = (torch.randn(300, 7, dtype=F64) * torch.rand(300, 1, dtype=F64).mul(4)).exp()
    c = 0.7
    u = shrink_groups(w, c, s)
    size = torch.linalg.vector_norm(u, dim=1)
    dead = torch.linalg.vector_norm(w / s, dim=1) <= c
    assert 10 < dead.sum() < 290
    assert torch.equal(size == 0, dead)
    residual = ((u - w) / s + c * u / size[:, None])[~dead]
    scale = (w / s).abs()[~dead] + c
    assert (residual.abs() / scale).max() < 1e-9


def test_equal_steps_for_all_elements_give_the_closed_form() -> None:
    torch.manual_seed(0)
    w = torch.randn(40, 6, dtype=F64)
    expected = w * (1 - 0.5 * 0.9 / w.norm(dim=1, keepdim=True)).clamp(min=0)
    torch.testing.assert_close(shrink_groups(w, 0.9, torch.full_like(w, 0.5)), expected)
    torch.testing.assert_close(shrink_groups(w, 0.45), expected)


def test_elements_without_a_step_stay_and_extremes_are_finite() -> None:
    w = torch.tensor([[1.0, 2.0, -3.0], [1e-30, -2e-30, 0.0], [1e30, 2e30, 1.0], [0, 0, 0]])
    s = torch.tensor([[0.0, 1.0, 1.0], [1e-30, 0.0, 1.0], [1.0, 1.0, 1.0], [1, 0, 1]])
    u = shrink_groups(w, 100.0, s)
    assert u.isfinite().all()
    assert u[0, 0] == 1.0
    assert u[0, 1].abs() < 2
    assert u[1, 1] == w[1, 1]
    torch.testing.assert_close(u[2], w[2], rtol=1e-6, atol=0.0)
    assert not u[3].any()


@pytest.mark.parametrize("groups", ["rows", "columns"])
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 2)])
def test_value_and_gradient_are_the_definition(groups: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    penalty = GroupLasso(1.0, groups=groups)
    w = torch.randn(shape, dtype=F64)
    slices = [w[i] for i in range(4)] if groups == "rows" else [w[:, j] for j in range(3)]
    expected = sum(part.numel() ** 0.5 * part.square().sum().sqrt() for part in slices)
    torch.testing.assert_close(penalty.value(w), expected)
    x = w.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(penalty.value(x), x)
    torch.testing.assert_close(penalty.gradient(w), gradient)
    torch.autograd.gradcheck(penalty.value, (x,))
    torch.autograd.gradcheck(penalty.gradient, (x,))
    assert not penalty.gradient(torch.zeros(shape)).any()
    # The proximal operator keeps the layout: each group is shrunk, none is mixed with another.
    shrunk = penalty.proximal(w, 0.1)
    for i, part in enumerate(slices):
        own = shrunk[i] if groups == "rows" else shrunk[:, i]
        factor = max(0.0, 1 - 0.1 * part.numel() ** 0.5 / part.norm().item())
        torch.testing.assert_close(own, factor * part)


def reference(x: torch.Tensor, y: torch.Tensor, strength: float) -> torch.Tensor:
    """Minimise ½·mean‖xWᵀ − y‖² + λ·Σ√n·‖column of W‖ by accelerated proximal gradients."""
    n, step = x.shape[0], 1 / torch.linalg.eigvalsh(x.T @ x / x.shape[0])[-1]
    w = z = torch.zeros(y.shape[1], x.shape[1], dtype=F64)
    t = 1.0
    for _ in range(5000):
        gradient = (z @ x.T - y.T) @ x / n
        v = z - step * gradient
        threshold = step * strength * y.shape[1] ** 0.5
        new = v * (1 - threshold / v.norm(dim=0, keepdim=True).clamp(min=1e-300)).clamp(min=0)
        t, old = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
        z, w = new + (old - 1) / t * (new - w), new
    return w


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.9, 0.9)),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_training_rests_at_the_group_lasso(optimizer: object) -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 8, dtype=F64) @ torch.diag(torch.linspace(0.5, 2, 8, dtype=F64))
    truth = torch.zeros(3, 8, dtype=F64)
    truth[:, :3] = torch.randn(3, 3, dtype=F64)
    y = x @ truth.T + 0.1 * torch.randn(60, 3, dtype=F64)
    expected = reference(x, y, 0.1)
    assert 0 < (expected.norm(dim=0) == 0).sum() < 8
    model = nn.Linear(8, 3, bias=False, dtype=F64)
    trained = optimizer(model.parameters())
    plugin = GroupLasso(0.1, groups="columns", delivery="proximal")
    with regplug.attach(model, trained, [plugin]) as session:
        for _ in range(2000):
            trained.zero_grad()
            (0.5 * (model(x) - y).square().sum(1).mean()).backward()
            trained.step()
        assert session.metrics()["group_lasso/zeros"] == (expected == 0).double().mean().item()
    assert torch.equal(model.weight == 0, expected == 0)
    torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-6, atol=1e-8)


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(SpecError, match="groups must be 'rows' or 'columns'"):
        GroupLasso(1.0, groups="blocks")
    model = nn.Linear(2, 2)
    with pytest.raises(SelectionError, match=r"bias has shape \(2,\).*exclude it"):
        regplug.attach(model, plugins=[GroupLasso(1.0, where="all")])
