"""Subclasses that write one formula anew: what an ancestor knows of another one is not theirs."""

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import SpecError, UnsupportedError
from regplug_builtins import L1, L2, L2SP, ElasticNet, GroupLasso, SpectralNorm
from tests.helpers.loops import moved

F64 = torch.float64


class OfL1(L1):
    def value(self, w):
        return w.pow(4).sum()


class OfL2(L2):
    def value(self, w):
        return w.pow(4).sum()


class OfElasticNet(ElasticNet):
    def __init__(self, strength, **settings):
        super().__init__(0.7, 0.8, **settings)
        self.strength = strength

    def value(self, w):
        return w.pow(4).sum()


class OfGroupLasso(GroupLasso):
    def value(self, w):
        return w.pow(4).sum()


class OfSpectralNorm(SpectralNorm):
    def value(self, w):
        return w.pow(4).sum()


class Mixin:
    def value(self, w):
        return w.pow(4).sum()


class ByMixin(Mixin, L1):
    pass


class Further(OfL1):
    def gradient(self, w):
        return 5 * w


class Back(Further):
    def value(self, w):
        return w.pow(4).sum()


class Halved(L1):
    def value(self, w):
        return super().value(w) / 2


@pytest.mark.parametrize("size", [2, 300, 1100])
@pytest.mark.parametrize("by_loss", [False, True])
@pytest.mark.parametrize(
    "kind", [OfL1, OfL2, OfElasticNet, OfGroupLasso, OfSpectralNorm, ByMixin, Back]
)
def test_value_alone_brings_its_own_gradient(kind, by_loss, size):
    start = torch.randn(size, size, dtype=F64)
    penalty = kind(0.01, delivery="loss" if by_loss else "step")
    found = moved(penalty, start, by_loss=by_loss)
    torch.testing.assert_close(found, start - 0.1 * 0.01 * 4 * start**3, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(penalty.gradient(start), 4 * start**3, rtol=1e-12, atol=1e-12)


def test_value_may_build_on_the_ancestors():
    start = torch.randn(3, 2, dtype=F64)
    found = moved(Halved(0.1, delivery="step"), start, by_loss=False)
    torch.testing.assert_close(found, start - 0.1 * 0.1 * start.sign() / 2, rtol=0, atol=1e-15)


def test_gradient_that_is_written_further_down_is_the_one_that_acts():
    start = torch.randn(3, 2, dtype=F64)
    found = moved(Further(0.1, delivery="step"), start, by_loss=False)
    torch.testing.assert_close(found, start * (1 - 0.1 * 0.1 * 5), rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", [OfL1, OfL2, OfElasticNet, OfGroupLasso, ByMixin, Further])
def test_proximal_operator_of_another_value_is_refused(kind):
    with pytest.raises(SpecError, match=r"of another value.*write proximal\(w, step\)"):
        kind(0.1, delivery="proximal")


def test_proximal_operator_that_is_written_beside_the_value_acts():
    class Doubled(L1):
        def value(self, w):
            return 2 * w.abs().sum()

        def proximal(self, w, step):
            return nn.functional.softshrink(w, 2 * step * self.strength)

    start = torch.randn(30, 20, dtype=F64)
    found = moved(Doubled(0.5, delivery="proximal"), start, by_loss=False)
    torch.testing.assert_close(found, nn.functional.softshrink(start, 0.1), rtol=0, atol=1e-15)


def test_proximal_operator_written_anew_need_not_know_steps_for_each_element():
    class OneStep(GroupLasso):
        def value(self, w):
            return w.norm()

        def proximal(self, w, step):
            return w * max(1 - step * self.strength / float(w.norm()), 0)

    model = nn.Linear(3, 2)
    with pytest.raises(UnsupportedError, match="not separable"):
        regplug.attach(
            model, torch.optim.Adam(model.parameters()), [OneStep(1, delivery="proximal")]
        )


@pytest.mark.parametrize("place", ["instance", "init"])
@pytest.mark.parametrize("by_loss", [False, True])
def test_value_set_on_an_instance_brings_its_own_gradient(place, by_loss):
    class Given(L1):
        def __init__(self, strength, **settings):
            super().__init__(strength, **settings)
            self.value = lambda w: w.pow(4).sum()

    delivery = "loss" if by_loss else "step"
    if place == "init":
        penalty = Given(0.01, delivery=delivery)
    else:
        penalty = L1(0.01, delivery=delivery)
        penalty.value = lambda w: w.pow(4).sum()
    start = torch.randn(4, 3, dtype=F64)
    found = moved(penalty, start, by_loss=by_loss)
    torch.testing.assert_close(found, start - 0.1 * 0.01 * 4 * start**3, rtol=1e-12, atol=1e-12)


def test_gradient_set_on_an_instance_is_the_one_that_acts():
    penalty = L1(0.1, delivery="step")
    penalty.gradient = lambda w: 5 * w
    start = torch.randn(4, 3, dtype=F64)
    torch.testing.assert_close(moved(penalty, start, by_loss=False), start * (1 - 0.1 * 0.1 * 5))


def test_value_set_on_an_instance_leaves_it_no_proximal_operator():
    penalty = L1(0.1, delivery="proximal")
    penalty.value = lambda w: w.pow(4).sum()
    model = nn.Linear(2, 1)
    with pytest.raises(SpecError, match=r"of another value.*write proximal\(w, step\)"):
        regplug.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), [penalty])


class Norms(L2):
    """Not separable, though its ancestor is."""

    def value(self, w):
        return w.norm()


@pytest.mark.parametrize("sizes", [(2,), (3, 4) * 20, (1200,)])
def test_value_that_is_no_sum_over_elements_is_not_cut_or_joined(sizes):
    starts = [torch.randn(size, size, dtype=F64) for size in sizes]
    for delivery in ("step", "loss"):
        model = nn.ParameterList([start.clone() for start in starts])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with regplug.attach(model, optimizer, [Norms(0.5, delivery=delivery)]) as session:
            expected = 0.5 * sum(float(start.norm()) for start in starts)
            assert session.metrics()["norms/value"] == pytest.approx(expected, rel=1e-12)
            session.loss(sum((0 * w).sum() for w in model)).backward()
            optimizer.step()
        for w, start in zip(model, starts, strict=True):
            torch.testing.assert_close(w.detach(), start - 0.05 * start / start.norm())


def test_value_that_is_a_sum_over_elements_stays_separable():
    penalty = Halved(0.1)
    regplug.attach(nn.Linear(2, 1), plugins=[penalty])
    assert penalty.separable


def test_what_a_base_states_before_there_is_a_value_is_kept():
    class Elementwise(regplug.Penalty):
        separable = True

        def gradient(self, w):
            return self.slope(w)

    class Cubes(Elementwise):
        def value(self, w):
            return w.abs().pow(3).sum()

        def slope(self, w):
            return 3 * w * w.abs()

    assert Cubes.gradient is Elementwise.gradient
    start = torch.randn(3, 2, dtype=F64)
    torch.testing.assert_close(Cubes(1.0).gradient(start), 3 * start * start.abs())


def test_value_of_anchors_alone_brings_its_own_gradient():
    class Quartic(L2SP):
        def value(self, w, anchor=None):
            return (w if anchor is None else w - anchor).pow(4).sum()

    model = nn.ParameterList([torch.zeros(2, 2, dtype=F64)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [Quartic(1.0, delivery="step")]):
        with torch.no_grad():
            model[0] += 2.0
        model[0].grad = torch.zeros(2, 2, dtype=F64)
        optimizer.step()
    torch.testing.assert_close(model[0].detach(), torch.full((2, 2), 2 - 0.1 * 32, dtype=F64))
