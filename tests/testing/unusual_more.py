"""More plugins that are right and unusual: each looks like something that is wrong."""

import collections
import math

import torch
from torch import nn

import regplug
from regplug import Penalty, Plugin, full, hookimpl, local, part
from tests.testing.wrong_constraints import Constraint
from tests.testing.wrong_formulas import L1, Strong, weights
from tests.testing.wrong_runs import Acts


class Kronecker(Penalty):
    """WᵀW and WWᵀ at once: quadratic in rows and in columns, linear in the weights of a shape."""

    def value(self, w):
        m = w.flatten(1) if w.ndim > 1 else w.reshape(1, -1)
        return (m @ m.mT).square().mean() + (m.mT @ m).square().mean()


class PairsOfRows(Penalty):
    """Cosines between all pairs of rows, safe where a row is 0."""

    orientation = "rows"

    def value(self, w):
        m = w.flatten(1) if w.ndim > 1 else w.reshape(1, -1)
        unit = m / (m.square().sum(1, keepdim=True) + 1e-6).sqrt()
        cosines = unit @ unit.mT
        return (cosines.square().sum() - cosines.diagonal().square().sum()) / m.shape[0]


class SquareRootProximal(Penalty):
    """λ·‖w‖₂ of a whole weight: its operator is 0 for all at once."""

    def value(self, w):
        return w.norm()

    def gradient(self, w):
        return w / w.norm().clamp(min=1e-30)

    def proximal(self, w, step):
        return w * (1 - step * self.strength / w.norm().clamp(min=1e-30)).clamp(min=0)


class LogCosh(Penalty):
    """Σ log cosh w, by a formula that does not overflow."""

    separable = True

    def value(self, w):
        size = w.abs()
        return (size + nn.functional.softplus(-2 * size) - math.log(2)).sum()

    def gradient(self, w):
        return w.tanh()


class Mean(Penalty):
    """λ·mean(w²): its gradient gets weaker the larger the weight is."""

    def value(self, w):
        return w.square().sum() / max(w.numel(), 1)

    def proximal(self, w, step):
        return w / (1 + 2 * step * self.strength / max(w.numel(), 1))


class OnlyLarge(Penalty):
    """Σ max(|w| − 1, 0)²: nothing at all for small weights."""

    separable = True

    def value(self, w):
        return (w.abs() - 1).clamp(min=0).square().sum()


class ScaleBySqrtRate(Strong):
    """Decay by the root of the learning rate, which need not be linear."""

    reads_gradients = False

    @hookimpl
    def before_step(self, session):
        for index, ws, _ in session.updates(regplug.Selection("weights")):
            for w in ws:
                w.mul_(1 - session.learning_rate(index) ** 0.5 * self.strength * 0.1)


class CentresGradients(Plugin):
    """Takes the mean of each row out of the gradient: a projection of gradients."""

    order_matters = True

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            g = full(w.grad)
            less = g - g.flatten(1).mean(1).reshape(-1, *[1] * (g.ndim - 1))
            local(w.grad).copy_(part(less, w))


class ClipsElements(Strong):
    """Clips each element of the gradients: three times the gradient may be clipped to the same."""

    order_matters = True
    strength = regplug.Scheduled(off=None)

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            local(w.grad).clamp_(-self.strength, self.strength)


class PrunesShare(Constraint):
    """Sets a share of the weights to 0: a thousandth more is often no more weight."""

    limit = regplug.Scheduled(high=1.0)

    def mapped(self, w):
        less = int(self.limit * w.numel())
        if not less:
            return w
        order = w.abs().flatten().argsort(stable=True)
        kept = torch.ones(w.numel(), dtype=torch.bool, device=w.device)
        kept[order[:less]] = False
        return torch.where(kept.view(w.shape), w, 0)


class ClipsWeights(Constraint):
    """Weights within ±limit."""

    projects = True

    def mapped(self, w):
        return w.clamp(-self.limit, self.limit)


class StandardizesRows(Constraint):
    """Rows of mean 0 and one variance, but for an ε: it leaves no weight alone."""

    def mapped(self, w):
        m = w.flatten(1).float()
        spread = (m.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return (self.limit * (m - m.mean(1, keepdim=True)) / spread).reshape(w.shape).to(w.dtype)


class TwoOfFour(Constraint):
    """Of each four weights the two smallest are 0, the others within ±limit."""

    def mapped(self, w):
        flat = w.clamp(-self.limit, self.limit).flatten()
        whole = flat[: flat.numel() // 4 * 4].view(-1, 4)
        keep = torch.zeros_like(whole, dtype=torch.bool)
        keep.scatter_(1, whole.abs().argsort(dim=1, descending=True, stable=True)[:, :2], True)
        return torch.cat([(whole * keep).flatten(), flat[whole.numel() :]]).view(w.shape)


class KeepsTen(Acts):
    """Keeps the last ten norms, and says so in its state."""

    def __init__(self, strength=0.01, name=None):
        super().__init__(strength, name)
        self.norms = collections.deque(maxlen=10)

    def act(self, session):
        super().act(session)
        self.norms.append(
            float(torch.stack([full(w).detach().norm() for w in weights(session)]).norm())
        )

    @hookimpl
    def on_state(self, session):
        return {"norms": list(self.norms)}

    @hookimpl
    def on_load_state(self, session, state):
        self.norms = collections.deque(state["norms"], maxlen=10)


class WeighsLoss(Strong):
    """Has the loss count for more: a term that hangs on the loss alone."""

    shapes_loss = True

    @hookimpl
    def on_loss(self, session, loss):
        return self.strength * loss


class OwnNumbers(L1):
    """Has arguments of other kinds, of which it keeps copies."""

    def __init__(
        self, strength, *, power=1.0, words=("a", "b"), where="weights", delivery="auto", name=None
    ):
        super().__init__(strength, where=where, delivery=delivery, name=name)
        self.power, self.words = float(power), tuple(words)

    def value(self, w):
        return w.abs().sum() * self.power

    def gradient(self, w):
        return w.sign() * self.power
