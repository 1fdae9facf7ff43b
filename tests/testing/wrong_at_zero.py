"""Plugins of other kinds than a penalty of one weight that divide by what may be 0."""

import itertools

import torch
from torch import nn

import regplug
from regplug import JointPenalty, Scheduled, Selective, full, hookimpl, local
from tests.testing.wrong_held import Decays


class RootOfDifference(JointPenalty):
    """extremes: the root of what is 0 where two means are equal."""

    def groups(self, session):
        found = [m.weight for m in session.model.modules() if isinstance(m, nn.Linear)]
        yield from ((a, b) for a, b in itertools.pairwise(found) if a is not b)

    def value(self, first, second):
        return (first.mean() - second.mean()).square().sqrt() + first.square().mean()


class UnitRows(Selective):
    """extremes: a row of zeros has no direction."""

    projects = False

    def __init__(self, *, where="weights", name=None):
        self.where, self.name = where, name

    @hookimpl
    def after_step(self, session):
        for _, ws, _ in session.updates(self._selection):
            for w in ws:
                whole = full(w)
                dims = tuple(range(1, whole.ndim)) or None
                unit = whole / torch.linalg.vector_norm(whole, dim=dims, keepdim=True)
                local(w).copy_(regplug.part(unit, w))


class ClipsZeroGradients(Selective):
    """extremes: 0/0 where a gradient is 0."""

    clip = Scheduled(off=None)
    order_matters = True

    def __init__(self, clip=0.01, *, where="weights", name=None):
        self.clip, self.where, self.name = clip, where, name

    @hookimpl
    def on_gradients(self, session):
        for _, ws, gradients in session.updates(self._selection):
            for w, g in zip(ws, gradients, strict=True):
                local(g).mul_((full(w).norm() * self.clip / full(g).norm()).clamp(max=1))


class ByTheLargest(Decays):
    """extremes: a decay in proportion to the largest weight, which may be 0."""

    @hookimpl
    def before_step(self, session):
        for index, ws, _ in session.updates(self._selection):
            for w in ws:
                whole = full(w)
                share = regplug.part(whole.abs() / whole.abs().max(), w)
                local(w).mul_(1 - session.learning_rate(index) * self.rate * share)


class PeakOverMean(Decays):
    """extremes: a metric that is 0/0."""

    @hookimpl
    def before_step(self, session):
        self.decay(session, self.rate)

    @hookimpl
    def on_metrics(self, session):
        sizes = [full(e.parameter).abs() for e in session.coverage(self._selection)]
        return {"peak": torch.stack([w.max() / w.mean() for w in sizes]).max()}
