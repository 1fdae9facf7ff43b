"""λ as it is read, for the ways in which people write penalties; against differences of weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regplug import doctor

STRENGTH = 0.0375
ANCHOR = torch.linspace(-1, 1, 24).reshape(6, 4).double()


def every(f):
    return lambda model: sum(map(f, model.parameters()))


def first(f):
    return lambda model: f(model[0].weight)


def flat(model):
    return nn.utils.parameters_to_vector(model.parameters())


def end_to_end(model):
    return torch.cat([p.view(-1) for p in model.parameters()])


def norms(model):
    return torch.stack([p.norm() for p in model.parameters()])


# How it is written, the kind that it is, and λ as a multiple of what is written before it.
WRITTEN = {
    "abs sum": (every(lambda p: p.abs().sum()), "l1", 1),
    "torch.abs": (every(lambda p: torch.sum(torch.abs(p))), "l1", 1),
    "abs mean": (first(lambda p: p.abs().mean()), "l1", 1 / 24),
    "norm(1)": (every(lambda p: p.norm(1)), "l1", 1),
    "torch.norm p=1": (every(lambda p: torch.norm(p, p=1)), "l1", 1),
    "vector_norm 1": (every(lambda p: torch.linalg.vector_norm(p, 1)), "l1", 1),
    "a cat of weights": (lambda m: end_to_end(m).abs().sum(), "l1", 1),
    "norm(1) of a cat": (lambda m: end_to_end(m).norm(1), "l1", 1),
    "parameters_to_vector": (lambda m: flat(m).abs().sum(), "l1", 1),
    "l1_loss to zeros": (first(lambda p: F.l1_loss(p, 0 * p.detach(), reduction="sum")), "l1", 1),
    "L1Loss, mean": (first(lambda p: nn.L1Loss()(p, torch.zeros_like(p))), "l1", 1 / 24),
    "transposed and reshaped": (first(lambda p: p.t().reshape(-1).abs().sum()), "l1", 1),
    "stacked": (every(lambda p: torch.stack([p.abs().sum()]).sum()), "l1", 1),
    "a multiple of w": (first(lambda p: (3 * p).abs().sum()), "l1", 3),
    "pow(2)": (every(lambda p: p.pow(2).sum()), "l2", 1),
    "** 2": (every(lambda p: (p**2).sum()), "l2", 1),
    "square": (every(lambda p: torch.square(p).sum()), "l2", 1),
    "half of it": (every(lambda p: 0.5 * p.pow(2).sum()), "l2", 0.5),
    "divided by 2": (every(lambda p: p.pow(2).sum() / 2), "l2", 0.5),
    "p * p": (every(lambda p: (p * p).sum()), "l2", 1),
    "abs squared": (every(lambda p: p.abs().pow(2).sum()), "l2", 1),
    "mean of squares": (first(lambda p: p.pow(2).mean()), "l2", 1 / 24),
    "norm() ** 2": (every(lambda p: p.norm() ** 2), "l2", 1),
    "torch.norm(p, 2) ** 2": (every(lambda p: torch.norm(p, 2) ** 2), "l2", 1),
    "norm squared by square": (every(lambda p: p.norm().square()), "l2", 1),
    "norm times norm": (every(lambda p: p.norm() * p.norm()), "l2", 1),
    "linalg.norm ** 2": (every(lambda p: torch.linalg.norm(p) ** 2), "l2", 1),
    "matrix_norm ** 2": (first(lambda p: torch.linalg.matrix_norm(p) ** 2), "l2", 1),
    "norms of rows, squared": (first(lambda p: p.norm(dim=1).pow(2).sum()), "l2", 1),
    "a stack of norms, squared": (
        lambda m: torch.stack([p.norm() for p in m.parameters()]).pow(2).sum(), "l2", 1),
    "the norm of norms, squared": (
        lambda m: torch.stack([p.norm(2) for p in m.parameters()]).norm(2) ** 2, "l2", 1),
    "foreach_norm ** 2": (
        lambda m: sum(n**2 for n in torch._foreach_norm(list(m.parameters()))), "l2", 1),
    "einsum": (first(lambda p: torch.einsum("ij,ij->", p, p)), "l2", 1),
    "dot": (every(lambda p: torch.dot(p.flatten(), p.flatten())), "l2", 1),
    "@": (every(lambda p: p.view(-1) @ p.view(-1)), "l2", 1),
    "trace": (first(lambda p: torch.trace(p.T @ p)), "l2", 1),
    "tensordot": (first(lambda p: torch.tensordot(p, p, dims=2)), "l2", 1),
    "mse_loss to zeros": (first(lambda p: F.mse_loss(p, 0 * p.detach(), reduction="sum")), "l2", 1),
    "MSELoss, mean": (first(lambda p: nn.MSELoss()(p, torch.zeros_like(p))), "l2", 1 / 24),
    "a cat, squared": (lambda m: end_to_end(m).pow(2).sum(), "l2", 1),
    "norm of a vector, squared": (lambda m: flat(m).norm(2) ** 2, "l2", 1),
    "float()": (every(lambda p: p.float().double().pow(2).sum()), "l2", 1),
    "norm()": (first(lambda p: p.norm()), "norm", 1),
    "torch.norm": (every(torch.norm), "norm", 1),
    "the root of squares": (first(lambda p: p.pow(2).sum().sqrt()), "norm", 1),
    "the norm of a vector": (lambda m: flat(m).norm(2), "norm", 1),
    "the norm of norms": (lambda m: norms(m).norm(), "norm", 1),
    "foreach_norm": (lambda m: sum(torch._foreach_norm(list(m.parameters()))), "norm", 1),
    "to an anchor": (first(lambda p: (p - ANCHOR).pow(2).sum()), "l2_to_anchor", 1),
    "norm to an anchor, squared": (first(lambda p: (p - ANCHOR).norm() ** 2), "l2_to_anchor", 1),
    "mse_loss to an anchor": (first(lambda p: F.mse_loss(p, ANCHOR)), "l2_to_anchor", 1 / 24),
    "an anchor minus w": (first(lambda p: (ANCHOR - p).square().sum()), "l2_to_anchor", 1),
    "abs to an anchor": (first(lambda p: (p - ANCHOR).abs().sum()), "l1_to_anchor", 1),
    "l1_loss to an anchor": (first(lambda p: F.l1_loss(p, ANCHOR)), "l1_to_anchor", 1 / 24),
}  # fmt: skip


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def trained(penalty, strength, report=None, lr=0.1):
    """Return how one step of plain descent moves the weights."""
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    examined = doctor.examine(model, optimizer)
    with examined:
        x = torch.linspace(-1, 1, 32).reshape(8, 4).double()
        (model(x).square().mean() + strength * penalty(model)).backward()
        optimizer.step()
    return [
        (b - p.detach()) / lr for b, p in zip(before, model.parameters(), strict=True)
    ], examined


DERIVATIVES = {
    "l1": lambda w, norm: w.sign(),
    "l2": lambda w, norm: 2 * w,
    "norm": lambda w, norm: w / norm,
    "l2_to_anchor": lambda w, norm: 2 * (w - ANCHOR),
    "l1_to_anchor": lambda w, norm: (w - ANCHOR).sign(),
}


@pytest.mark.parametrize("way", WRITTEN)
def test_strength_is_what_moves_the_weights(way):
    penalty, kind, times = WRITTEN[way]
    moves, examined = trained(penalty, STRENGTH)
    without, _ = trained(penalty, 0.0)
    read = {
        name: {p.kind: p.strength for p in group.penalties}
        for group in examined.groups
        for name in group.parameters
    }
    model = net()
    together = way in ("the norm of a vector", "the norm of norms")
    whole = float(flat(model).detach().norm())
    penalized = 0
    for (name, w), moved, alone in zip(model.named_parameters(), moves, without, strict=True):
        difference = moved - alone
        if not difference.any():
            assert read[name] in ({}, {"other": None})
            continue
        penalized += 1
        slope = DERIVATIVES[kind](w.detach(), whole if together else float(w.detach().norm()))
        # λ by the difference that the term makes to the weights, and as it is read.
        shown = float((difference * slope).sum() / (slope * slope).sum())
        torch.testing.assert_close(shown * slope, difference, rtol=1e-6, atol=1e-9)
        assert read[name] == {kind: pytest.approx(shown, rel=1e-5)}
        assert read[name][kind] == pytest.approx(STRENGTH * times, rel=1e-5)
    assert penalized


@pytest.mark.parametrize(
    "penalty",
    [
        first(lambda p: p.norm(dim=1).sum()),
        first(lambda p: (p.T @ p - torch.eye(4)).pow(2).sum()),
        first(lambda p: (p**4).sum()),
        first(lambda p: torch.log1p(p**2).sum()),
        first(lambda p: torch.linalg.svdvals(p).sum()),
        lambda m: sum(p.norm() for p in m.parameters()) ** 2,
        first(lambda p: F.smooth_l1_loss(p, torch.zeros_like(p))),
        first(lambda p: (p.abs() * torch.arange(24.0).reshape(6, 4)).sum()),
        first(lambda p: (p.abs() + p.pow(2)).pow(2).sum()),
        first(lambda p: torch.addcmul(torch.zeros_like(p), p, p).sum()),
    ],
    ids=[
        *("rows", "orthogonal", "fourth", "log", "nuclear", "sum squared", "huber", "mask"),
        *("mixed", "addcmul"),
    ],
)
def test_what_is_none_of_these_is_another_penalty(penalty):
    _, examined = trained(penalty, STRENGTH)
    (group,) = [group for group in examined.groups if "0.weight" in group.parameters]
    assert [(p.kind, p.strength) for p in group.penalties] == [("other", None)]


@pytest.mark.parametrize(
    "loss",
    [
        lambda m, x: m(x).square().mean(),
        lambda m, x: (m(x) + m[2].bias.abs().sum() * 0).square().mean(),
        lambda m, x: F.linear(F.linear(x, m[0].weight / m[0].weight.norm()), m[2].weight).mean(),
        lambda m, x: m[2](F.linear(x, m[0].weight * m[0].weight.abs().mean())).mean(),
        lambda m, x: (m[2](F.softplus(m[0].bias) * m[0](x))).mean(),
    ],
    ids=["plain", "times 0", "normalized", "scaled", "softplus"],
)  # fmt: skip
def test_weights_that_data_go_through_are_no_penalty(loss):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with doctor.examine(model, optimizer) as examined:
        loss(model, torch.ones(3, 4).double()).backward()
        optimizer.step()
    assert all(not p.strength for group in examined.groups for p in group.penalties)
