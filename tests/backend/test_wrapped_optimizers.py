"""Optimizers that pass their step on to others: what acts is attached to the one that updates.

The classes of others are written here as they are widely copied.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import SpecError, UnsupportedError

LR = 0.1


class SAM(torch.optim.Optimizer):
    """As davda54/sam: an outer optimizer with an inner one that shares its groups."""

    def __init__(self, params: Any, base_optimizer: Any, rho: float = 0.05, **kwargs: Any) -> None:
        super().__init__(params, {"rho": rho, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        norms = [p.grad.norm() for g in self.param_groups for p in g["params"]]
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old_p"] = p.data.clone()
                p.add_(p.grad * group["rho"] / torch.stack(norms).norm())
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old_p"]
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is not None
        closure = torch.enable_grad()(closure)
        self.first_step(zero_grad=True)
        closure()
        self.second_step()

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        self.base_optimizer.param_groups = self.param_groups


class AGC(torch.optim.Optimizer):
    """As of nfnets: clips, then lets the optimizer that it is given step. Its groups are copies."""

    def __init__(self, params: Any, optim: torch.optim.Optimizer, most: float) -> None:
        super().__init__(params, {})
        self.optim, self.most = optim, most

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            nn.utils.clip_grad_norm_(group["params"], self.most)
        return self.optim.step(closure)


class Container(torch.optim.Optimizer):
    """As torchtitan's: initialised as an optimizer for its hooks alone, in one group."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.optimizers = parts
        everything = [p for part in parts for g in part.param_groups for p in g["params"]]
        super().__init__(everything, dict(parts[0].defaults))

    def step(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        for part in self.optimizers:
            part.step(*args, **kwargs)

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        for part in self.optimizers:
            part.zero_grad(*args, **kwargs)


class PCGrad:
    """As WeiChengTseng/Pytorch-PCGrad: no optimizer itself."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optim = optimizer

    def zero_grad(self) -> None:
        return self._optim.zero_grad()

    def step(self) -> Any:
        return self._optim.step()


class ASAM:
    """As SamsungLabs/ASAM: no optimizer itself, given one and the model."""

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        self.optimizer, self.model = optimizer, model

    def descent_step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


class Lookahead(torch.optim.Optimizer):
    """As lonePatient's and pytorch_optimizer's: with or without hooks of its own that fire."""

    def __init__(self, optimizer: torch.optim.Optimizer, hooks: bool) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.state = defaultdict(dict)
        if hooks:
            self._optimizer_step_pre_hooks = OrderedDict()
            self._optimizer_step_post_hooks = OrderedDict()
            self._patch_step_function()

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


def net() -> nn.Linear:
    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.5, -2.0]]))
    return model


def loss(model: nn.Module) -> torch.Tensor:
    """½‖w + 1‖², whose gradient w + 1 SAM asks for at w + ρ·(w + 1)/‖w + 1‖."""
    w: torch.Tensor = next(model.parameters())
    return 0.5 * (w + 1).square().sum()


def sam_gradient(w: torch.Tensor, rho: float = 0.05) -> torch.Tensor:
    return (w + 1) + rho * (w + 1) / (w + 1).norm()


def agrees(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-9)


# --- sharpness-aware ones -------------------------------------------------------------------------


def sam_step(optimizer: SAM, model: nn.Module, form: str) -> None:
    if form == "closure":

        def closure() -> torch.Tensor:
            value = loss(model)
            value.backward()
            return value

        closure()
        optimizer.step(closure)
        optimizer.zero_grad()
        return
    loss(model).backward()
    optimizer.first_step(zero_grad=True)
    loss(model).backward()
    optimizer.second_step(zero_grad=True)


@pytest.mark.parametrize("form", ["two steps", "closure"])
@pytest.mark.parametrize("given", ["outer", "inner"])
def test_sam_takes_penalties_decay_and_constraints_once(form: str, given: str) -> None:
    model = net()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=LR)
    attached = optimizer if given == "outer" else optimizer.base_optimizer
    plugins = ["l1(0.3)", "weight_decay(0.2)", "max_norm(2)"]
    expected = net().weight.detach()
    with regplug.attach(model, attached, plugins) as session:
        assert session.optimizer is optimizer.base_optimizer
        for step in range(3):
            sam_step(optimizer, model, form)
            gradient = sam_gradient(expected) + 0.3 * expected.sign()
            expected = (1 - LR * 0.2) * expected - LR * gradient
            expected = expected * (2 / expected.norm()).clamp(max=1)
            agrees(model.weight, expected)
            assert session.steps == step + 1
        assert "Linear with SGD, 3 steps" in session.describe()


@pytest.mark.parametrize("form", ["two steps", "closure"])
def test_sam_takes_a_proximal_operator(form: str) -> None:
    model = net()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=LR)
    with regplug.attach(model, optimizer, ["l1(2, delivery='proximal')"]):
        sam_step(optimizer, model, form)
    w = net().weight.detach()
    w = w - LR * sam_gradient(w)
    agrees(model.weight, w.sign() * (w.abs() - LR * 2).clamp(min=0))


def test_a_schedulers_learning_rate_reaches_what_sam_holds() -> None:
    model = net()
    optimizer = SAM(model.parameters(), torch.optim.AdamW, lr=LR, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    session = regplug.attach(model, optimizer, ["weight_decay(0.2)"])
    reference = net()
    other = SAM(reference.parameters(), torch.optim.AdamW, lr=LR, weight_decay=0.2)
    others = torch.optim.lr_scheduler.StepLR(other, 1, gamma=0.5)
    for _ in range(3):
        sam_step(optimizer, model, "two steps")
        sam_step(other, reference, "two steps")
        for each in (scheduler, others):
            each.optimizer._opt_called = True  # type: ignore[attr-defined]
            each.step()
    optimizer.load_state_dict(optimizer.state_dict())
    sam_step(optimizer, model, "two steps")
    sam_step(other, reference, "two steps")
    assert session.steps == 4
    agrees(model.weight, reference.weight.detach())


def test_what_is_no_optimizer_itself_is_seen_through() -> None:
    for asam in (False, True):
        model = net()
        inner = torch.optim.SGD(model.parameters(), lr=LR)
        outer: Any = ASAM(inner, model) if asam else PCGrad(inner)
        with regplug.attach(model, outer, ["l1(0.3)"]) as session:
            assert session.optimizer is inner
            loss(model).backward()
            inner.step()
            assert session.steps == 1
        w = net().weight.detach()
        agrees(model.weight, w - LR * (w + 1 + 0.3 * w.sign()))


def test_a_wrapper_that_clips_does_not_clip_what_is_added() -> None:
    model = net()
    inner = torch.optim.SGD(model.parameters(), lr=LR)
    with regplug.attach(model, AGC(model.parameters(), inner, 1.0), ["l1(0.3)"]) as session:
        assert session.optimizer is inner


@pytest.mark.parametrize("hooks", [False, True])
def test_lookahead_is_seen_through(hooks: bool) -> None:
    model = net()
    inner = torch.optim.AdamW(model.parameters(), lr=LR)
    outer = Lookahead(inner, hooks)
    spec = "weight_decay(0.5, existing='replace')"
    with regplug.attach(model, outer, [spec]) as session:
        assert session.optimizer is inner
        model.weight.grad = torch.zeros_like(model.weight)
        outer.step()
        assert session.steps == 1
    agrees(model.weight, net().weight.detach() * (1 - LR * 0.5))


def test_wrappers_of_wrappers_are_seen_through() -> None:
    from accelerate import Accelerator

    model = net()
    sam = SAM(model.parameters(), torch.optim.SGD, lr=LR)
    clipping = AGC(model.parameters(), sam, 1.0)
    prepared = Accelerator(cpu=True).prepare_optimizer(clipping)
    for outer in (prepared, Lookahead(clipping, hooks=True)):
        with regplug.attach(model, outer, ["l1(0.3)"]) as session:
            assert session.optimizer is sam.base_optimizer


# --- containers -----------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = net(), net()


def container(model: Two, **settings: Any) -> Container:
    return Container(
        [torch.optim.SGD(m.parameters(), lr=LR, **settings) for m in (model.a, model.b)]
    )


def zero_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()


def test_the_learning_rate_is_that_of_the_part() -> None:
    model = Two()
    optimizer = container(model)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(part, lambda step, k=k: (1 + k) / (1 + step))  # type: ignore[misc]
        for k, part in enumerate(optimizer.optimizers)
    ]
    expected = [net().weight.detach() for _ in range(2)]
    with regplug.attach(model, optimizer, ["weight_decay(0.5)"]) as session:
        for step in range(3):
            zero_step(model, optimizer)
            for k, m in enumerate((model.a, model.b)):
                expected[k] = expected[k] * (1 - 0.5 * LR * (1 + k) / (1 + step))
                agrees(m.weight, expected[k])
            for scheduler in schedulers:
                scheduler.step()
        assert session.steps == 3


def test_decay_that_is_replaced_is_that_of_the_parts_and_comes_back() -> None:
    model = Two()
    optimizer = container(model, weight_decay=0.4)
    with pytest.raises(SpecError, match=r"weight_decay=0\.4"):
        regplug.attach(model, optimizer, ["weight_decay(0.5)"])
    with regplug.attach(model, optimizer, ["weight_decay(0.5, existing='replace')"]):
        zero_step(model, optimizer)
        for m in (model.a, model.b):
            agrees(m.weight, net().weight.detach() * (1 - 0.5 * LR))
    assert [part.param_groups[0]["weight_decay"] for part in optimizer.optimizers] == [0.4, 0.4]


def test_a_container_of_one_is_that_one() -> None:
    model = net()
    inner = torch.optim.Adam(model.parameters(), lr=LR)
    optimizer = Container([inner])
    with regplug.attach(model, optimizer, ["l1(0.3, delivery='proximal')"]) as session:
        assert session.optimizer is inner
        loss(model).backward()
        optimizer.step()
        assert session.steps == 1


def test_penalties_of_a_container_act_once_a_step() -> None:
    model = Two()
    optimizer = container(model)
    with regplug.attach(model, optimizer, ["l1(0.3)", "non_negative"]) as session:
        zero_step(model, optimizer)
        assert session.steps == 1
        w = net().weight.detach()
        for m in (model.a, model.b):
            agrees(m.weight, (w - LR * 0.3 * w.sign()).clamp(min=0))


def test_a_maximizing_part_shrinks_all_the_same() -> None:
    model = Two()
    optimizer = container(model, maximize=True)
    optimizer.param_groups[0]["maximize"] = False  # a copy that nobody reads
    with regplug.attach(model, optimizer, ["l1(0.3)"]):
        zero_step(model, optimizer)
        w = net().weight.detach()
        agrees(model.a.weight, w - LR * 0.3 * w.sign())


# --- what is refused ------------------------------------------------------------------------------


class Switching(torch.optim.Optimizer):
    """Steps one or the other of two optimizers of the same weights."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        super().__init__(params, {"lr": LR})
        self.adam = torch.optim.Adam(params)
        self.sgd = torch.optim.SGD(params, lr=LR)

    def step(self, closure: Any = None) -> Any:
        return self.adam.step(closure)


class Bundle:
    """Several optimizers with one step, and no optimizer itself."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    def step(self) -> None:
        for part in self.parts:
            part.step()


class Bare(torch.optim.Optimizer):
    """A container that was never initialised as an optimizer, so that its hooks never fire."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts


def unclear() -> list[Any]:
    model = Two()
    parts = container(model).optimizers
    return [
        pytest.param(model, Bundle(*parts), "optimizer.parts", id="no optimizer"),
        pytest.param(model, Bare(parts), "optimizer.parts", id="no hooks"),
        pytest.param(model, parts, "optimizer", id="a list"),
        pytest.param(model, dict(enumerate(parts)), "optimizer.values()", id="a dict"),
    ]


@pytest.mark.parametrize(("model", "optimizer", "parts"), unclear())
def test_a_container_without_hooks_is_refused_with_a_line_to_copy(
    model: nn.Module, optimizer: Any, parts: str
) -> None:
    with pytest.raises((SpecError, UnsupportedError)) as raised:
        regplug.attach(model, optimizer, ["l1(0.3)"])
    line = str(raised.value).split("`")[1]
    scope = {"regplug": regplug, "model": model, "optimizer": optimizer, "plugins": ["l1(0.3)"]}
    assert f"enumerate({parts})" in line
    exec(line, scope)
    assert [session.name for session in scope["sessions"]] == ["part0", "part1"]  # type: ignore[attr-defined]
    for session in scope["sessions"]:  # type: ignore[attr-defined]
        session.detach()


def test_two_optimizers_of_the_same_weights_are_refused_by_their_names() -> None:
    model = net()
    with pytest.raises(UnsupportedError, match=r"Switching .*adam.*sgd"):
        regplug.attach(model, Switching(model.parameters()), ["l1(0.3)"])


class Aloof(torch.optim.Optimizer):
    """Updates by itself, though it holds an optimizer of the same weights."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        super().__init__(params, {"lr": LR})
        self.fallback = torch.optim.SGD(params, lr=LR)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for w in self.param_groups[0]["params"]:
            w.sub_(LR * w.grad)


def test_a_wrapper_that_updates_by_itself_after_all_is_refused_at_its_second_step() -> None:
    model = net()
    optimizer = Aloof(model.parameters())
    with regplug.attach(model, optimizer, ["l1(0.3)"]) as session:
        loss(model).backward()
        optimizer.step()
        with pytest.raises(UnsupportedError, match=r"Aloof .*fallback.*with session.step\(lr=…\)"):
            optimizer.step()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    # The way out that it names:
    model = net()
    optimizer = Aloof(model.parameters())
    with regplug.attach(model, plugins=["l1(0.3)"]) as session:
        loss(model).backward()
        with session.step(lr=LR):
            optimizer.step()
    w = net().weight.detach()
    agrees(model.weight, w - LR * (w + 1 + 0.3 * w.sign()))


def test_nothing_stays_on_a_wrapper_that_passes_its_step_on() -> None:
    model = net()
    optimizer = AGC(model.parameters(), torch.optim.SGD(model.parameters(), lr=LR), 1.0)
    with regplug.attach(model, optimizer, ["l1(0.3)"]) as session:
        for _ in range(3):
            loss(model).backward()
            optimizer.step()
        assert session.steps == 3
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
