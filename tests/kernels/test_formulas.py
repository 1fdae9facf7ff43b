"""Formulas of others: subclasses, mixins, companions that come late, memory that they ask for."""

import pytest
import torch
from torch import nn

import regplug
from regplug import scratch
from regplug_builtins import L1, L2SP, GroupLasso
from regplug_builtins.l1 import signs, soft_threshold, soft_threshold_
from tests.helpers.loops import moved

DELIVERIES = ("step", "loss", "proximal")
F64 = torch.float64


# Ancestors


class Twice:
    """Doubles whatever it is mixed into."""

    def value(self, *tensors):
        return 2 * super().value(*tensors)

    def gradient(self, *tensors):
        return 2 * super().gradient(*tensors)

    def proximal(self, w, step, *companions):
        return super().proximal(w, 2 * step, *companions)


class TwiceByMixin(Twice, L1):
    pass


class TwiceBySubclass(L1):
    def value(self, w):
        return 2 * w.abs().sum()

    def gradient(self, w):
        return 2 * w.sign()

    def proximal(self, w, step):
        return soft_threshold(w, 2 * step * self.strength)


class Further(TwiceByMixin):
    """Writes nothing anew."""


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("size", [2, 300])
@pytest.mark.parametrize("kind", [TwiceByMixin, TwiceBySubclass, Further])
def test_formula_that_is_written_anew_is_the_one_that_acts(kind, size, delivery):
    """What an ancestor does on lists, for speed, is of its own formula."""
    start = torch.randn(size, size, dtype=F64)
    ours, theirs = (
        moved(p, start) for p in (kind(0.1, delivery=delivery), L1(0.2, delivery=delivery))
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15)
    assert not torch.equal(ours, start)


def test_value_alone_may_be_written_anew():
    class Plain(regplug.Penalty):
        separable = True

        def value(self, w):
            return w.sum()

        def add_gradients(self, gradients, weights, factor):
            torch._foreach_add_(gradients, factor)

    class Squared(Plain):
        def value(self, w):
            return w.square().sum()

    start = torch.randn(3, 2)
    torch.testing.assert_close(moved(Squared(0.5, delivery="step"), start), start * 0.9)
    torch.testing.assert_close(moved(Plain(0.5, delivery="step"), start), start - 0.05)


def test_lists_method_of_a_mixin_that_knows_no_formula_is_kept():
    class KeepsZeros:
        def add_gradients(self, gradients, weights, factor):
            for g, w in zip(gradients, weights, strict=True):
                g.add_(self.gradient(w) * (w != 0), alpha=factor)

    class ToOne(KeepsZeros, regplug.Penalty):
        separable = True

        def value(self, w):
            return (w - 1).square().sum()

        def gradient(self, w):
            return 2 * (w - 1)

    found = moved(ToOne(1.0, delivery="step"), torch.tensor([[0.0, 3.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 3.0 - 0.1 * 4]]))


class Clipped(L2SP):
    """Has companions and formulas of its own, but nothing on lists."""

    def value(self, w, anchor=None):
        return nn.functional.huber_loss(w, anchor, reduction="sum", delta=0.5)

    def gradient(self, w, anchor=None):
        return (w - anchor).clamp(-0.5, 0.5)

    def proximal(self, w, step, anchor=None):
        t = step * self.strength
        far = (w - anchor).abs() > 0.5 * (1 + t)
        return torch.where(far, w - 0.5 * t * (w - anchor).sign(), anchor + (w - anchor) / (1 + t))


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("shape", [(2, 3), (1200, 1000)])
def test_subclass_with_companions_needs_no_formula_on_lists(shape, optimizer, delivery):
    torch.manual_seed(0)
    model = nn.ParameterList([torch.randn(shape, dtype=F64)])
    updates = optimizer(model.parameters(), lr=0.1)
    anchor = model[0].detach().clone()
    with regplug.attach(model, updates, [Clipped(0.5, delivery=delivery)]) as session:
        with torch.no_grad():
            model[0] += torch.randn(shape, dtype=F64)
        start, pull = model[0].detach().clone(), torch.ones(shape, dtype=F64)
        session.loss((pull * model[0]).sum()).backward()
        updates.step()
    step = torch.tensor(0.1, dtype=F64)
    gradient = pull.clone()
    if delivery != "proximal":
        gradient += 0.5 * (start - anchor).clamp(-0.5, 0.5)
    if optimizer is torch.optim.RMSprop:
        step = 0.1 / ((0.01 * gradient.square()).sqrt() + 1e-8)
    expected = start - step * gradient
    if delivery == "proximal":
        expected = Clipped(0.5).proximal(expected, step, anchor)
    torch.testing.assert_close(model[0].detach(), expected)


# Companions


class Consolidated(regplug.Penalty):
    """λ·Σ(w − c)² from the moment on at which there is a c, as in continual learning."""

    separable = True

    def __init__(self, strength, **settings):
        super().__init__(strength, **settings)
        self.known, self.broken = {}, False

    def companions(self, w):
        if self.broken:
            raise OSError("not there")
        return (self.known[id(w)],) if id(w) in self.known else ()

    def value(self, w, c=None):
        return w.sum() * 0 if c is None else (w - c).square().sum()

    def gradient(self, w, c=None):
        return torch.zeros_like(w) if c is None else 2 * (w - c)


@pytest.mark.parametrize("delivery", ["step", "loss"])
def test_companions_may_come_late(delivery):
    model = nn.Linear(3, 2, bias=False)
    penalty = Consolidated(1.0, delivery=delivery)
    session = regplug.attach(model, torch.optim.SGD(model.parameters(), lr=1e-9), [penalty])
    for expected in (0.0, 2.0):
        session.optimizer.zero_grad()
        session.loss((0 * model.weight).sum()).backward()
        session.optimizer.step()
        torch.testing.assert_close(model.weight.grad, torch.full((2, 3), expected))
        penalty.known = {id(model.weight): model.weight.detach().clone()}
        with torch.no_grad():
            model.weight += 1


def test_call_that_failed_leaves_nothing_remembered():
    model = nn.ParameterList([torch.ones(2, 2), torch.ones(2, 2)])
    penalty = Consolidated(1.0, delivery="loss")
    session = regplug.attach(model, plugins=[penalty, "l1(1.0, delivery='loss')"])
    assert session.loss(torch.zeros(())).item() == 8
    model[0].requires_grad_(False)
    penalty.broken = True
    with pytest.raises(regplug.errors.PluginError, match="not there"):
        session.loss(torch.zeros(()))
    penalty.broken = False
    assert session.loss(torch.zeros(())).item() == 4


@pytest.mark.parametrize("size", [3, 1100])
@pytest.mark.parametrize("kind", [L1, L2SP, GroupLasso])
def test_gradients_are_right_where_hooks_save_copies_of_the_weights(kind, size):
    """As those do that offload them; the copies are other objects than the parameters."""
    torch.manual_seed(0)
    model = nn.Linear(size, 2 * size, bias=False).double()
    session = regplug.attach(model, plugins=[kind(0.5, delivery="loss"), "l2(0.3)"])
    anchor = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    start = model.weight.detach().clone()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
        loss = session.loss((0 * model.weight).sum())
    with torch.no_grad():
        model.weight *= 3  # the copies are from before
    loss.backward()
    expected = {
        L1: 0.5 * start.sign(),
        L2SP: start - anchor,
        GroupLasso: 0.5 * size**0.5 * start / start.norm(dim=1, keepdim=True),
    }
    torch.testing.assert_close(model.weight.grad, expected[kind] + 0.6 * start)


@pytest.mark.parametrize("place", ["instance", "class", "init"])
@pytest.mark.parametrize("delivery", ["step", "loss"])
def test_companions_may_be_written_anywhere(delivery, place):
    class Anchored(regplug.Penalty):
        separable = True

        def __init__(self, strength, **settings):
            super().__init__(strength, **settings)
            if place == "init":
                self.companions = lambda w: (anchor,)

        def value(self, w, c=None):
            return (w if c is None else w - c).square().sum()

        def gradient(self, w, c=None):
            return 2 * (w if c is None else w - c)

    model = nn.Linear(3, 2, bias=False)
    anchor = model.weight.detach().clone()
    penalty = Anchored(1.0, delivery=delivery)
    if place == "instance":
        penalty.companions = lambda w: (anchor,)
    if place == "class":
        Anchored.companions = lambda self, w: (anchor,)
    session = regplug.attach(model, torch.optim.SGD(model.parameters(), lr=1e-9), [penalty])
    session.loss((0 * model.weight).sum()).backward()
    session.optimizer.step()
    assert torch.equal(model.weight.grad, torch.zeros(2, 3))


# Memory for results


def test_proximal_operator_may_ask_for_scratch_of_its_own():
    class Careful(L1):
        def proximal(self, w, step):
            size = torch.abs(w, out=scratch(w))
            return w.sign() * size.sub_(step * self.strength).clamp_(min=0)

    start = torch.randn(1000, 1000)
    ours, theirs = (
        moved(p(0.05, delivery="proximal"), start, torch.optim.RMSprop, alpha=0.5)
        for p in (Careful, L1)
    )
    torch.testing.assert_close(ours, theirs)


def test_soft_threshold_of_what_lies_in_scratch():
    w = torch.linspace(-1, 1, 1_000_000)
    doubled = torch.mul(w, 2, out=scratch(w))
    soft_threshold_([doubled], torch.full_like(w, 0.5), 1.0)
    torch.testing.assert_close(doubled, nn.functional.softshrink(2 * w, 0.5))


def test_signs_of_parameters_need_no_gradient():
    w = nn.Parameter(torch.randn(1000, 1000))
    (found,) = signs([w])
    assert torch.equal(found, w.sign())
    assert not found.requires_grad


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_default_device_of_the_program_is_not_that_of_the_weights(delivery):
    """A program that makes tensors on an accelerator may train a model on the CPU, and stop so."""

    def run(device):
        torch.manual_seed(0)
        model = nn.ParameterList([torch.randn(1000, 1000, device="cpu"), torch.ones(2, 2)])
        optimizer = torch.optim.RMSprop(model.parameters(), lr=0.013, alpha=0.3)
        session = regplug.attach(model, optimizer, [L1(0.5, delivery=delivery)])
        with torch.device(device):
            session.loss(sum(w.square().sum() for w in model)).backward()
            optimizer.step()
        return list(model)

    for ours, theirs in zip(run("meta"), run("cpu"), strict=True):
        assert torch.equal(ours, theirs)


def test_halves_have_the_steps_that_they_have_in_float32():
    """Where 1/lr is beyond float16."""
    start = torch.full((8, 8), 1e-3)
    zeros = []
    for dtype in (torch.float16, torch.float32):
        model = nn.ParameterList([start.to(dtype)])
        optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-5)
        regplug.attach(model, optimizer, [GroupLasso(200.0, delivery="proximal")])
        model[0].grad = torch.full_like(model[0], 0.1)
        optimizer.step()
        zeros.append(int((model[0] == 0).sum()))
    assert zeros == [64, 64]
