"""Tensors are made where the weights are, whatever torch.set_default_device says."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import regplug
from regplug.backend.sums import Sum, resolve
from regplug.delivery.in_loss import Objective
from regplug.delivery.terms import Term, total
from regplug_builtins import L2
from tests.helpers.layers import StochasticDepth

F64 = torch.float64


@contextmanager
def default_device(device: str | None) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


def rig(kind: Any, dtype: torch.dtype) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), StochasticDepth(), nn.Linear(8, 2)]
    model = nn.Sequential(*layers).to(dtype)
    optimizer = kind(model.parameters(), lr=0.05)
    for w in model.parameters():
        w.grad = torch.ones_like(w)
    optimizer.step()  # so that its own state is on the CPU
    return model, optimizer


PENALTIES = ["l1", "l2", "elastic_net", "group_lasso", "l2_sp", "orthogonal", "spectral_norm"]
NO_PROXIMAL = ("orthogonal", "spectral_norm")
SPECS = [
    f"{name}({'0.1, 0.1' if name == 'elastic_net' else '0.1'}, delivery={delivery!r})"
    for name in PENALTIES
    for delivery in ("auto", "loss", "step", "proximal")
    if not (delivery == "proximal" and name in NO_PROXIMAL)
] + [
    "weight_decay(0.1, existing='replace')",
    "weight_decay(0.1, existing='replace', cautious=True)",
    "max_norm(0.5)",
    "unit_norm()",
    "non_negative()",
    "l1_ball(0.5)",
    "hard_threshold(0.5)",
    "dropout(linear(0.5, 0.1, steps=4))",
    "drop_path(linear(0, 0.2, steps=3))",
    "gradient_noise(0.1)",
    "activity(0.1, 0.1)",
]
RUNS = [
    (torch.optim.SGD, torch.float32),
    (torch.optim.Adam, F64),
    (torch.optim.AdamW, torch.bfloat16),
]


def run(spec: str, kind: Any, dtype: torch.dtype, device: str | None) -> list[torch.Tensor]:
    model, optimizer = rig(kind, dtype)
    x = torch.ones(3, 4, dtype=dtype)
    in_loss = "loss" in spec or "activity" in spec
    with default_device(device):
        with regplug.attach(model, optimizer, [spec]) as session:
            for turn in range(2):

                def closure() -> torch.Tensor:
                    optimizer.zero_grad()
                    # Seeded: the noise of a dropout is drawn on the CPU all the same.
                    torch.manual_seed(3)
                    loss = model(x).square().mean()
                    loss = session.loss(loss) if in_loss else loss
                    loss.backward()
                    return loss

                if turn:
                    optimizer.step(closure)
                else:
                    closure()
                    optimizer.step()
            state = session.state_dict()
            session.load_state_dict(state)
            assert session.metrics()
            assert session.describe()
        session.state_dict()
        session.metrics()
    return [w.detach() for w in model.parameters()]


@pytest.mark.parametrize("spec", SPECS)
def test_a_default_device_is_no_matter(spec: str) -> None:
    for kind, dtype in RUNS:
        ours, plain = run(spec, kind, dtype, "meta"), run(spec, kind, dtype, None)
        assert all(map(torch.equal, ours, plain)), (kind, dtype)


def test_steps_by_hand_under_a_default_device() -> None:
    model = nn.Linear(3, 2)
    weights = model.weight.detach().clone()
    with default_device("meta"):
        session = regplug.attach(model, plugins=["l2(0.5)", "l1(0.1, delivery='proximal')"])
        for w in model.parameters():
            w.grad = torch.zeros_like(w)
        with session.step(lr=0.1), torch.no_grad():
            for w in model.parameters():
                w.sub_(0.1 * w.grad)
    moved = weights - 0.1 * weights
    expected = moved.sign() * (moved.abs() - 0.01).clamp(min=0)
    torch.testing.assert_close(model.weight.detach(), expected)


# A loss, and its weights, on several devices. The meta device stands for another: it knows shapes
# and devices, and refuses to mix as all do, but it holds no values.


class Elsewhere(nn.Module):
    """A loss that ends on the CPU, from weights on two devices, as a split model has it."""

    def __init__(self) -> None:
        super().__init__()
        self.here = nn.Linear(3, 3, bias=False)
        self.there = nn.Linear(3, 3, bias=False, device="meta")


@pytest.mark.parametrize("size", [3, 600])  # small weights together, and one by itself
@pytest.mark.parametrize("plugin", ["l1", "elastic_net", "group_lasso", "l2_sp", "orthogonal"])
@pytest.mark.parametrize("differentiable", [False, True])
def test_the_gradient_of_a_penalty_is_on_the_device_of_its_weight(
    size: int, plugin: str, differentiable: bool
) -> None:
    """The loss is on another, as one that is computed at the end of a split model."""
    strengths = "0.1, 0.1" if plugin == "elastic_net" else "0.1"
    model = nn.Linear(size, 3, bias=False)
    session = regplug.attach(model, plugins=[f"{plugin}({strengths}, delivery='loss')"])
    (term,) = session._calls.all("on_loss", session, loss=torch.zeros(()))
    loss = torch.zeros((), device="meta", requires_grad=True)
    penalized = Objective().penalized(loss, [term])
    assert penalized.device.type == "meta"
    # The upstream gradient is copied to the weight; the meta device alone has none to copy.
    with pytest.raises(NotImplementedError, match="copy out of meta tensor"):
        torch.autograd.grad(penalized, model.weight, create_graph=differentiable)


def test_values_of_weights_on_several_devices_add_up_on_one() -> None:
    model = Elsewhere()
    penalty = L2(0.5, delivery="loss")
    session = regplug.attach(model, plugins=[penalty])
    coverage = session.coverage(penalty._selection)
    loss = torch.zeros((), requires_grad=True)
    term = Term(penalty._formula_kernel, coverage, (0.5,))
    value = total(term)
    assert isinstance(value, torch.Tensor)
    assert value.device.type == "meta"
    with pytest.raises(NotImplementedError, match="meta tensor"):
        session.loss(loss)  # whose value is wanted on the CPU


class NoDouble(torch.utils._python_dispatch.TorchDispatchMode):
    """Refuses float64 everywhere but on the host, as MPS does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == F64:
                assert tensor.device.type == "cpu", f"{func} makes float64 on {tensor.device}"
        return out


def test_sums_are_never_made_in_float64_on_a_device() -> None:
    """Where it is not the CPU: the meta device stands for one, and counts as refusing it."""
    w = nn.Parameter(torch.ones(3, device="meta"))
    with NoDouble(), pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        resolve([Sum([(w, w.sum())])])


def test_all_figures_are_read_with_one_wait_for_their_device(monkeypatch):
    read = []
    cpu = torch.Tensor.cpu

    def counted(self):
        read.append(self.shape)
        return cpu(self)

    w = torch.randn(3, 4)
    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    found = resolve([Sum([(w, row), (w, 1.5)]) for row in w.abs().sum(1).unbind()])
    assert read == [(3,)]
    assert found == pytest.approx([1.5 + row for row in w.abs().sum(1).tolist()])
