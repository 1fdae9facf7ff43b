"""Constraints that are wrong on purpose, proximal operators that are, and some that are right."""

import torch

import regplug
from regplug import Penalty, full, hookimpl, local, part
from tests.testing.wrong_formulas import L1


class Constraint(regplug.Selective):
    """After each step w ← mapped(w)."""

    order_matters = True
    reads_gradients = False
    limit = regplug.Scheduled(off=None)

    def __init__(self, limit=1.0, *, where="weights", name=None):
        self.limit, self.where, self.name = limit, where, name

    def mapped(self, w):
        raise NotImplementedError

    @hookimpl
    def on_attach(self, session):
        session.coverage(self._selection)

    @hookimpl
    def after_step(self, session):
        for _, weights, _ in session.updates(self._selection):
            for w in weights:
                local(w).copy_(part(self.mapped(full(w)), w))

    def rows(self, w):
        return w.flatten(1).norm(dim=1).reshape(-1, *[1] * (w.ndim - 1))


# --- projection -------------------------------------------------------------------------------


class RowsByColumns(Constraint):
    """projection: scales the rows of square weights by what their columns measure."""

    def mapped(self, w):
        sizes = self.rows(w if w.shape[0] != w.shape[1] else w.mT)
        return w * (self.limit / sizes).clamp(max=1)


class HalfInLogarithms(Constraint):
    """projection: takes a root where there is none, so that rows get there in the long run only."""

    def mapped(self, w):
        return w * (self.limit / self.rows(w)).clamp(max=1).sqrt()


class DividedTwice(Constraint):
    """projection: longer rows end shorter, by the square of their norm."""

    def mapped(self, w):
        sizes = self.rows(w)
        return torch.where(sizes > self.limit, w * self.limit / sizes**2, w)


class OneAfterTheOther(Constraint):
    """Right: rows are to be within a bound, and then columns."""

    def mapped(self, w):
        w = w * (self.limit / self.rows(w)).clamp(max=1)
        return w if w.ndim < 2 else w * (self.limit / w.norm(dim=0)).clamp(max=1)


class SaysNearest(Constraint):
    """projection: divides by the largest singular value, and says that this is a projection."""

    projects = True

    def mapped(self, w):
        largest = torch.linalg.matrix_norm(w.flatten(1).float(), 2)
        return (w * (self.limit / largest).clamp(max=1)).to(w.dtype)


class SaysBothNearest(OneAfterTheOther):
    """projection: rows and then columns are put in place, which is not the nearest of both."""

    projects = True


class DividesBySpectralNorm(SaysNearest):
    """Right: the same, and does not say so."""

    projects = None


class PartOfTheWay(Constraint):
    """Right: moves rows that are too long by a third of what they are too long by."""

    def mapped(self, w):
        return w + ((self.limit / self.rows(w)).clamp(max=1) - 1) * w / 3


class LongestRow(Constraint):
    """Right: scales all rows by the longest, which is as good a set."""

    def mapped(self, w):
        return w * (self.limit / self.rows(w).max()).clamp(max=1)


class Reflects(Constraint):
    """Right: turns what is below a limit around, and says that this is no projection."""

    projects = False

    def mapped(self, w):
        return torch.where(w < -self.limit, -2 * self.limit - w, w)


class Shrinks(Constraint):
    """Right: takes a little off in each step, whatever the learning rate is."""

    def mapped(self, w):
        return w.sign() * (w.abs() - 1e-3 * self.limit).clamp(min=0)


# --- proximal ---------------------------------------------------------------------------------


class HuberTooEarly(Penalty):
    """proximal: turns to its linear part at 1, and not at 1 + step·λ."""

    separable = True

    def value(self, w):
        return torch.where(w.abs() < 1, w.square() / 2, w.abs() - 0.5).sum()

    def end(self, t):
        return 1.0

    def proximal(self, w, step):
        t = step * self.strength
        return torch.where(w.abs() < self.end(t), w / (1 + t), w - t * w.sign())


class HuberInTime(HuberTooEarly):
    """Right: the same at the right place."""

    def end(self, t):
        return 1 + t


class CrossesZero(L1):
    """proximal: goes on beyond 0, which only a strong one does."""

    def proximal(self, w, step):
        return w - w.sign() * step * self.strength


class Straight(Penalty):
    """proximal: a gradient step, which for a weak one is as good."""

    def value(self, w):
        return w.square().mean() * 1e-3

    def proximal(self, w, step):
        return w * (1 - 2e-3 * step * self.strength / w.numel())


class MinimaxConcave(Penalty):
    """Right: not convex, and its formula is one for steps that leave the objective convex."""

    separable = True
    gamma = 3.0

    def value(self, w):
        size = w.abs().clamp(max=self.gamma)
        return (size - size.square() / (2 * self.gamma)).sum()

    def proximal(self, w, step):
        t = step * self.strength
        inner = w.sign() * (w.abs() - t).clamp(min=0) / (1 - t / self.gamma)
        return torch.where(w.abs() < self.gamma, inner, w)


class TraceNorm(Penalty):
    """Right: needs all singular values, of which a larger matrix has more."""

    def value(self, w):
        return torch.linalg.svdvals(w.flatten(1)).sum()

    def proximal(self, w, step):
        u, s, v = torch.linalg.svd(w.flatten(1), full_matrices=False)
        less = (s - step * self.strength).clamp(min=0)
        return ((u * less) @ v).reshape(w.shape)
