"""L2-SP against its formula, through every delivery, precision and a resumed run."""

import io

import pytest
import torch
from torch import nn

import regplug
from regplug.backend.blocks import BLOCK
from regplug.errors import StateError
from regplug_builtins import L2SP

F64 = torch.float64


def test_value_and_gradient_are_the_formula() -> None:
    torch.manual_seed(0)
    w, anchor = torch.randn(3, 4, dtype=F64, requires_grad=True), torch.randn(3, 4, dtype=F64)
    penalty = L2SP(1.0)
    expected = sum((a - b) ** 2 for a, b in zip(w.flatten(), anchor.flatten(), strict=True))
    torch.testing.assert_close(penalty.value(w, anchor), expected)
    torch.testing.assert_close(penalty.gradient(w, anchor), 2 * (w - anchor))
    torch.autograd.gradcheck(lambda x: penalty.value(x, anchor), (w,))


def test_the_proximal_operator_is_stationary() -> None:
    torch.manual_seed(0)
    w, anchor = torch.randn(3, 4, dtype=F64), torch.randn(3, 4, dtype=F64)
    penalty = L2SP(0.7)
    for step in (0.3, torch.rand(3, 4, dtype=F64)):
        u = penalty.proximal(w, step, anchor)
        torch.testing.assert_close((u - w) / step + 0.7 * penalty.gradient(u, anchor), 0 * u)
    still = penalty.proximal(w, torch.zeros_like(w), anchor)
    torch.testing.assert_close(still, w)


def trained(delivery: str, size: int = 4, steps: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(size, 3, dtype=F64)
    start = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with regplug.attach(model, optimizer, [L2SP(0.3, delivery=delivery)]) as session:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(torch.ones(2, size, dtype=F64)).sum() * 0.1
            (session.loss(loss) if delivery == "loss" else loss).backward()
            optimizer.step()
    return start, model.weight.detach()


@pytest.mark.parametrize("size", [4, BLOCK // 2])  # a weight of one block, and of one and a half
@pytest.mark.parametrize("delivery", ["step", "loss", "proximal"])
def test_every_delivery_pulls_towards_the_start(delivery: str, size: int) -> None:
    start, end = trained(delivery, size)
    w = start.clone()
    for _ in range(5):
        if delivery == "proximal":
            moved = w - 0.05 * 0.2
            w = start + (moved - start) / (1 + 2 * 0.05 * 0.3)
        else:
            w = w - 0.05 * (0.2 + 2 * 0.3 * (w - start))
    torch.testing.assert_close(end, w, rtol=1e-12, atol=1e-14)


def test_adam_rests_where_the_objective_does() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1, bias=False, dtype=F64)
    start = model.weight.detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.9))
    target = torch.randn(1, 4, dtype=F64)
    with regplug.attach(model, optimizer, [L2SP(0.5, delivery="proximal")]):
        for _ in range(3000):
            optimizer.zero_grad()
            (model.weight - target).square().sum().backward()
            optimizer.step()
    expected = (target + 0.5 * start) / 1.5
    torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-6, atol=1e-8)


def test_the_loss_can_be_differentiated_twice() -> None:
    model = nn.Linear(2, 1, bias=False, dtype=F64)
    with regplug.attach(model, plugins=[L2SP(0.5)]) as session:
        (gradient,) = torch.autograd.grad(
            session.loss(model.weight.pow(3).sum()), model.weight, create_graph=True
        )
        (second,) = torch.autograd.grad(gradient.sum(), model.weight)
    torch.testing.assert_close(second, 6 * model.weight.detach() + 2 * 0.5)


def test_a_resumed_run_keeps_its_starting_point() -> None:
    def rig() -> tuple[nn.Module, torch.optim.Optimizer, regplug.Session]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2, dtype=F64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, optimizer, regplug.attach(model, optimizer, ["l2_sp(0.4)"])

    def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(1, 3, dtype=F64)).square().sum().backward()
            optimizer.step()

    model, optimizer, session = rig()
    run(model, optimizer, 2)
    saved = io.BytesIO()
    torch.save({"session": session.state_dict(), "model": model.state_dict()}, saved)
    run(model, optimizer, 3)
    resumed, optimizer, session = rig()
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    resumed.load_state_dict(state["model"])
    session.load_state_dict(state["session"])
    run(resumed, optimizer, 3)
    assert torch.equal(resumed.weight, model.weight)

    other = nn.Linear(4, 2)
    with (
        regplug.attach(other, plugins=["l2_sp(0.4)"]) as session,
        pytest.raises(StateError, match="of the same shapes"),
    ):
        session.load_state_dict(state["session"])


def test_halves_are_compared_in_float32() -> None:
    torch.manual_seed(0)
    model = nn.Linear(1000, 1, bias=False, dtype=torch.bfloat16)
    start = model.weight.detach().clone()
    with regplug.attach(model, plugins=[L2SP(1.0)]) as session:
        with torch.no_grad():
            model.weight.add_(1.0)
        expected = (model.weight.detach().double() - start.double()).square().sum().item()
        assert session.metrics()["l2_sp/value"] == pytest.approx(expected, rel=1e-5)
