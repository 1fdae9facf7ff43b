"""Optimizers that keep weights of their own: what moves weights behind their back is refused.

What the gradient is changed by reaches them as it should. The classes of others are written here
as they are widely used; those with other names stand for the ones that nobody here knows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import UnsupportedError
from tests.helpers.nets import one_layer
from tests.helpers.optimizers import Lookahead

LR = 0.1


class Foreign(torch.optim.Optimizer):
    """A step of one's own, weight by weight."""

    def __init__(self, params: Any, lr: float = LR) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    self.update(w, w.grad, self.state[w], group["lr"])
        return loss

    def update(self, w: torch.Tensor, g: torch.Tensor, state: Any, lr: float) -> None:
        raise NotImplementedError


class SGDScheduleFree(Foreign):
    """As facebookresearch/schedule_free: z steps, x averages, training happens at y between."""

    beta = 0.9

    def update(self, w: torch.Tensor, g: torch.Tensor, state: Any, lr: float) -> None:
        z = state.setdefault("z", w.clone())
        k = state["k"] = state.get("k", 0) + 1
        w.lerp_(z, 1 / k)
        w.add_(g, alpha=lr * (self.beta * (1 - 1 / k) - 1))
        z.sub_(g, alpha=lr)


class Anchored(Foreign):
    """Dual averaging from an anchor, as madgrad's, under a name that nobody knows."""

    def update(self, w: torch.Tensor, g: torch.Tensor, state: Any, lr: float) -> None:
        x0 = state.setdefault("x0", w.clone())
        k = state["k"] = state.get("k", 0) + 1
        s = state.setdefault("s", torch.zeros_like(w)).add_(g, alpha=lr * k**0.5)
        v = state.setdefault("v", torch.zeros_like(w)).addcmul_(g, g, value=lr * k**0.5)
        w.lerp_(x0 - s / (v.pow(1 / 3) + 1e-6), 0.1)


class MADGRAD(Anchored):
    """The same under its own."""


class DAdaptSGD(Anchored):
    """Finds its own step size: what scales with lr means something else."""


class Ranger(Foreign):
    """Slow weights inside, mixed in every other step."""

    def update(self, w: torch.Tensor, g: torch.Tensor, state: Any, lr: float) -> None:
        slow = state.setdefault("slow_buffer", w.clone())
        w.sub_(g, alpha=lr)
        k = state["k"] = state.get("k", 0) + 1
        if k % 2 == 0:
            w.copy_(slow.lerp_(w, 0.5))


class Master(Foreign):
    """Keeps its weights in float64 beside the model's and copies them over at each step."""

    def update(self, w: torch.Tensor, g: torch.Tensor, state: Any, lr: float) -> None:
        w.copy_(state.setdefault("wide", w.double()).sub_(g, alpha=lr))


class ScheduleFreeWrapper:
    """As schedulefree's: no optimizer itself."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base = base

    def step(self) -> None:
        self.base.step()


# A subclass is known by its ancestors.
Renamed = type("Renamed", (SGDScheduleFree,), {})


def lookahead(params: Any) -> Any:
    return Lookahead(torch.optim.SGD(params, lr=LR))


def schedule_free_wrapper(params: Any) -> Any:
    return ScheduleFreeWrapper(torch.optim.SGD(params, lr=LR))


MOVERS = ["weight_decay(0.1)", "non_negative", "max_norm(0.5)", "unit_norm"]


def net() -> nn.Linear:
    return one_layer(5.0, 3.0, -2.0, dtype=torch.float32)


def step(model: nn.Linear, optimizer: Any) -> None:
    """Descend ½‖w + 1‖²."""
    model.weight.grad = model.weight.detach() + 1
    optimizer.step()


@pytest.mark.parametrize("spec", MOVERS)
@pytest.mark.parametrize("kind", [SGDScheduleFree, Renamed, MADGRAD, DAdaptSGD])
def test_what_moves_weights_is_refused_by_name(kind: Any, spec: str) -> None:
    model = net()
    with pytest.raises(UnsupportedError) as raised:
        regplug.attach(model, kind(model.parameters()), [spec])
    words = str(raised.value)
    assert words.startswith(spec.partition("(")[0])
    assert kind.__name__ in words
    assert "delivery='step'" in words


@pytest.mark.parametrize("spec", MOVERS)
@pytest.mark.parametrize("kind", [Ranger, lookahead, schedule_free_wrapper])
def test_slow_weights_take_decay_alone(kind: Any, spec: str) -> None:
    """Decay is what their own is; zeros and bounds would be gone at the next mixing."""
    model = net()
    optimizer = kind(model.parameters())
    if spec.startswith("weight_decay") and kind is not schedule_free_wrapper:
        with regplug.attach(model, optimizer, [spec]) as session:
            model.weight.grad = torch.zeros_like(model.weight)
            optimizer.step()
            assert session.steps == 1
        decayed = net().weight.detach() * (1 - LR * 0.1)
        torch.testing.assert_close(model.weight.detach(), decayed)
        return
    with pytest.raises(UnsupportedError, match=r"(Ranger|Lookahead|ScheduleFreeWrapper)"):
        regplug.attach(model, optimizer, [spec])


def test_a_proximal_operator_is_refused_inside_lookahead() -> None:
    model = net()
    with pytest.raises(UnsupportedError, match=r"l1.*Lookahead.*inside"):
        regplug.attach(model, lookahead(model.parameters()), ["l1(0.1, delivery='proximal')"])


@pytest.mark.parametrize("spec", MOVERS)
@pytest.mark.parametrize("kind", [Anchored, Master])
def test_a_copy_under_a_name_that_nobody_knows_is_found_at_the_first_step(
    kind: Any, spec: str
) -> None:
    model = net()
    optimizer = kind(model.parameters())
    with regplug.attach(model, optimizer, [spec]) as session:
        for _ in range(2):
            with pytest.raises(UnsupportedError) as raised:
                step(model, optimizer)
            assert session.steps == 0
        key = "x0" if kind is Anchored else "wide"
        assert f"{spec.partition('(')[0]}: {kind.__name__} keeps" in str(raised.value)
        assert f"state[{key!r}]" in str(raised.value)
        assert "delivery='step'" in str(raised.value)


@pytest.mark.parametrize("kind", [SGDScheduleFree, MADGRAD, DAdaptSGD, Ranger, Anchored, Master])
def test_what_is_added_to_the_gradient_arrives(kind: Any) -> None:
    model, reference = net(), net()
    optimizer, other = kind(model.parameters()), kind(reference.parameters())
    with regplug.attach(model, optimizer, ["l1(0.25)", "l2(0.125)"]) as session:
        for _ in range(20):
            step(model, optimizer)
            w = reference.weight.detach()
            reference.weight.grad = w + 1 + 0.25 * w.sign() + 0.25 * w
            other.step()
        assert session.steps == 20
    torch.testing.assert_close(model.weight, reference.weight, rtol=1e-5, atol=1e-5)


# --- those that keep none -------------------------------------------------------------------------


class Momentum(Foreign):
    """Its buffer is the gradient, which at ½‖w + 1‖² is much like the weights."""

    def update(self, w: torch.Tensor, g: torch.Tensor, state: Any, lr: float) -> None:
        state["buffer"] = state["buffer"] * 0.9 + g if "buffer" in state else g.clone()
        w.sub_(state["buffer"], alpha=lr)


class Scaled(Foreign):
    """Second moments, a step size for each element, and the previous gradient."""

    def update(self, w: torch.Tensor, g: torch.Tensor, state: Any, lr: float) -> None:
        v = state.setdefault("v", torch.zeros_like(w)).lerp_(g.square(), 0.1)
        state["size"], state["previous"] = torch.full_like(w, lr), g.clone()
        w.sub_(lr * g / (v.sqrt() + 1e-8))


@pytest.mark.parametrize("spec", MOVERS)
@pytest.mark.parametrize("kind", [Momentum, Scaled])
@pytest.mark.parametrize("constant", [False, True])
def test_optimizers_of_others_without_a_copy_are_let_be(
    kind: Any, spec: str, constant: bool
) -> None:
    model = net()
    if constant:
        nn.init.constant_(model.weight, LR)
    optimizer = kind(model.parameters())
    with regplug.attach(model, optimizer, [spec]) as session:
        for _ in range(3):
            step(model, optimizer)
        assert session.steps == 3


# --- weights that are moved before a closure is evaluated -----------------------------------------


class Perturbing(Foreign):
    """Evaluates its closure at other weights and puts them back, all in one class."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        (w,) = self.param_groups[0]["params"]
        kept = w.clone()
        w.data.add_(0.5)
        with torch.enable_grad():
            closure()
        w.data.copy_(kept)
        w.sub_(w.grad, alpha=LR)


def test_decay_that_would_be_undone_is_refused_at_the_first_step() -> None:
    model = net()
    optimizer = Perturbing(model.parameters())

    def closure() -> None:
        model.weight.grad = model.weight.detach() + 1

    with (
        regplug.attach(model, optimizer, ["weight_decay(0.5)"]),
        pytest.raises(UnsupportedError, match=r"weight_decay: Perturbing .*closure"),
    ):
        optimizer.step(closure)
    model = net()
    optimizer = Perturbing(model.parameters())
    with regplug.attach(model, optimizer, ["l1(0.5)", "non_negative"]) as session:
        optimizer.step(closure)
        assert session.steps == 1
    w = net().weight.detach()
    expected = w - LR * (w + 0.5 + 1 + 0.5 * (w + 0.5).sign())
    torch.testing.assert_close(model.weight.detach(), expected.clamp(min=0))
