"""Plugins that are right and look like nothing on the shelf: the exam must pass them all."""

import math

import torch
import torch.nn.functional as F

import regplug
from regplug import Penalty, hookimpl, widened
from tests.testing.wrong_formulas import Strong, weights


class Hoyer(Penalty):
    """Σ|w| over ‖w‖, which prefers few large weights; 0 where there is nothing."""

    def value(self, w):
        return w.abs().sum() / (w.square().sum() + 1e-12).sqrt()


class LogDet(Penalty):
    """−log det(WWᵀ + I): rows that span much."""

    orientation = "rows"

    def value(self, w):
        rows = w.reshape(w.shape[0], -1) if w.ndim > 1 else w.reshape(1, -1)
        gram = rows @ rows.T + torch.eye(rows.shape[0], dtype=w.dtype, device=w.device)
        return -torch.logdet(gram)


class HalfNorm(Penalty):
    """Σ√|w|, smoothed at 0, with the gradient stated."""

    separable = True

    def value(self, w):
        return (w.square() + 1e-6).sqrt().sqrt().sum()

    def gradient(self, w):
        size = w.square() + 1e-6
        return 0.5 * w / (size.sqrt() * size.sqrt().sqrt())


class Neighbours(Penalty):
    """Smooth L1 between neighbouring filters."""

    orientation = "rows"

    def value(self, w):
        if w.ndim == 0 or w.shape[0] < 2:
            return 0.0 * w.sum()
        return F.smooth_l1_loss(w[1:], w[:-1], reduction="sum", beta=0.1)


class LargestSingularValue(Penalty):
    """The spectral norm, by a decomposition."""

    def value(self, w):
        return torch.linalg.svdvals(w.reshape(w.shape[0], -1) if w.ndim > 1 else w.reshape(1, -1))[
            0
        ]


class Entropy(Penalty):
    """The entropy of |w| as shares of their sum: low where few weights have all of it."""

    def value(self, w):
        shares = (w.abs() + 1e-9) / (w.abs() + 1e-9).sum()
        return -(shares * shares.log()).sum()


class TotalVariation(Penalty):
    """Steps between neighbours along the last two dimensions."""

    def value(self, w):
        if w.ndim < 2:
            return w.diff().abs().sum() if w.ndim else 0 * w
        return w.diff(dim=-1).abs().sum() + w.diff(dim=-2).abs().sum()


class Codebook(Penalty):
    """The squared distance of each weight to the nearest of a few values."""

    separable = True

    def __init__(self, strength, *, where="weights", delivery="auto", name=None):
        super().__init__(strength, where=where, delivery=delivery, name=name)
        self._values = (-1.0, -0.25, 0.0, 0.25, 1.0)

    def value(self, w):
        values = torch.tensor(self._values, dtype=w.dtype, device=w.device)
        between = (values[1:] + values[:-1]) / 2
        return (w - values[torch.bucketize(w.detach(), between)]).square().sum()


class MinimaxConcave(Penalty):
    """MCP with γ = 1000: |w| − w²/2γ, flat from γ on. Its operator is stated."""

    separable = True
    gamma = 1000.0

    def value(self, w):
        a = w.abs()
        inside = a - a.clamp(max=self.gamma).square() / (2 * self.gamma)
        flat = torch.full_like(a, self.gamma / 2)
        return torch.where(a <= self.gamma, inside, flat).sum()

    def gradient(self, w):
        return w.sign() * (1 - w.abs() / self.gamma).clamp(min=0)

    def proximal(self, w, step):
        threshold = step * self.strength
        small = (w.abs() - threshold).clamp(min=0) / (1 - threshold / self.gamma)
        # From w itself, so that nothing is moved by a step of 0.
        inside = w - w.sign() * (w.abs() - small)
        inside = torch.where(w.abs() > threshold, inside, torch.zeros_like(w))
        kept = (w.abs() > self.gamma) | (torch.zeros_like(w) + threshold == 0)
        return torch.where(kept, w, inside)


class Welsch(Penalty):
    """1 − exp(−w²/2), by which outliers count no more than once."""

    separable = True

    def value(self, w):
        return -torch.expm1(-0.5 * w.square()).sum()


class LogCosh(Penalty):
    """log cosh w, in the form that does not overflow."""

    separable = True

    def value(self, w):
        return (w.abs() + F.softplus(-2 * w.abs()) - math.log(2)).sum()


class LargeFilters(Penalty):
    """Norms of the rows that are above their mean: a selection within the weight."""

    def value(self, w):
        norms = (w.reshape(w.shape[0], -1) if w.ndim > 1 else w.reshape(1, -1)).square().sum(1)
        return torch.where(norms > norms.mean().detach(), norms, 0.5 * norms).sum()


class PathNorm(Strong):
    """The sum over all paths through the squared matrices; a term of several weights at once."""

    @hookimpl
    def on_loss(self, session, loss):
        path = None
        for w in session.model.parameters():
            if w.ndim != 2:
                continue
            squares = widened(w).square()
            if path is None:
                path = torch.ones_like(squares[0])
            if path.shape[0] == squares.shape[1]:
                path = squares @ path
        if path is None:
            return None
        return self.signed(session) * (path.clamp(max=1e4).sum() + 1e-12).sqrt()

    def waits_for_loss(self, session):
        return True


class Lookahead(Strong):
    """Pulls weights towards where they were some steps ago, and remembers that as state."""

    def __init__(self, strength=0.05, name=None):
        super().__init__(strength, name)
        self.old = []

    @hookimpl
    def after_step(self, session):
        parts = [regplug.local(w) for w in weights(session)]
        if len(self.old) != len(parts):
            self.old = [p.clone() * 0.9 for p in parts]
        for part, old in zip(parts, self.old, strict=True):
            part.lerp_(old, self.strength)
            old.lerp_(part, 0.5)

    @hookimpl
    def on_state(self, session):
        return {"old": [p.clone() for p in self.old]}

    @hookimpl
    def on_load_state(self, session, state):
        self.old = [p.clone() for p in state["old"]]


class ClipsWeights(regplug.Plugin):
    """A constraint with a bound that is scheduled and has no value that turns it off."""

    bound = regplug.Scheduled(low=1e-6, off=None)

    def __init__(self, bound=0.5, *, where="weights", name=None):
        self.bound, self.where, self.name = bound, where, name
        self.selection = regplug.Selection(where)

    @hookimpl
    def on_attach(self, session):
        session.coverage(self.selection)

    @hookimpl
    def after_step(self, session):
        for _, ws, _ in session.updates(self.selection):
            for w in ws:
                regplug.local(w).clamp_(-self.bound, self.bound)


PENALTIES = (
    Hoyer,
    LogDet,
    HalfNorm,
    Neighbours,
    LargestSingularValue,
    Entropy,
    TotalVariation,
    Codebook,
    MinimaxConcave,
    Welsch,
    LogCosh,
    LargeFilters,
)
OTHERS = (PathNorm, Lookahead, ClipsWeights)
