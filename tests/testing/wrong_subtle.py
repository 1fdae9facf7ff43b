"""Plugins that are wrong in one place only, as is easily done: arguments, strengths, formulas."""

import torch

import regplug
from regplug import Penalty, hookimpl
from tests.testing.wrong_formulas import L1, Strong, weights
from tests.testing.wrong_runs import Acts

# --- arguments --------------------------------------------------------------------------------


class FirstPattern(L1):
    """arguments: of a list of patterns it keeps the first."""

    def __init__(self, strength, *, where="weights", delivery="auto", name=None):
        first = where if isinstance(where, str) else where[0]
        super().__init__(strength, where=first, delivery=delivery, name=name)


class OneName(Acts):
    """arguments: has one name, whatever it is called."""

    @property
    def name(self):
        return "one_name"

    @name.setter
    def name(self, name):
        pass


class AppendsToPatterns(L1):
    """arguments: leaves biases out by changing the list that it is given."""

    def __init__(self, strength, *, where="weights", delivery="auto", name=None):
        if isinstance(where, list):
            where.append("!*.bias")
        super().__init__(strength, where=where, delivery=delivery, name=name)


class OneScaleForAll(Strong):
    """arguments: keeps its strength in a dict that all instances share."""

    kept = {}  # noqa: RUF012

    @property
    def strength(self):
        return self.kept["strength"]

    @strength.setter
    def strength(self, value):
        self.kept["strength"] = value

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad.add_(w.detach().sign(), alpha=self.signed(session))


class FindsOnce(Acts):
    """attach-again: looks its weights up once for each kind of model."""

    def __init__(self, strength=0.01, name=None):
        super().__init__(strength, name)
        self._found = {}

    @hookimpl
    def on_attach(self, session):
        kind = type(session.model)
        if kind not in self._found:
            self._found[kind] = [p for p in session.model.parameters() if p.ndim > 1]
        self._mine = self._found[kind]

    def act(self, session):
        for w in self._mine:
            if w.grad is not None:
                w.grad.add_(w.detach().sign(), alpha=self.signed(session))


# --- strength, schedule -----------------------------------------------------------------------


class Cached(L1):
    """strength: remembers what λ was the first time that anybody asked."""

    kept = None

    def _strength_now(self):
        if self.kept is None:
            self.kept = super()._strength_now()
        return self.kept


class NeverFalls(Acts):
    """strength: what was stronger once stays so."""

    most = 0.0

    @hookimpl
    def on_attach(self, session):
        self.most = 0.0

    def act(self, session):
        self.most = max(self.most, self.strength)
        for w in weights(session):
            sign = self.signed(session) / self.strength if self.strength else 1
            w.grad.add_(w.detach().sign(), alpha=sign * self.most)


class NextStep(Acts):
    """schedule: takes the strength of the step that comes next, as it counts from one."""

    def act(self, session):
        strength = type(self).strength.at(self, session.steps + 1)
        maximize = any(group.get("maximize") for group in session.groups)
        for w in weights(session):
            w.grad.add_(w.detach().sign(), alpha=-strength if maximize else strength)


class Relative(Penalty):
    """pure: its value is relative to the strength, so that λ cancels."""

    def value(self, w):
        return w.abs().sum() * 0.01 / max(self.strength, 1e-12)


class Float16Strength(Acts):
    """strength: keeps λ in half precision on the way."""

    def act(self, session):
        strength = torch.tensor(self.signed(session), device="cpu").half().item()
        for w in weights(session):
            w.grad.add_(w.detach().sign(), alpha=strength)


# --- formulas ---------------------------------------------------------------------------------


class ByLargest(Penalty):
    """extremes: is relative to the largest weight, of which all may be 0."""

    def value(self, w):
        return (w / w.abs().max()).square().mean()


class NaiveLogSumExp(Penalty):
    """extremes: a smooth maximum whose exponentials overflow."""

    def value(self, w):
        return torch.log(torch.exp(w).sum())


class UnitGradient(L1):
    """extremes: states w/|w|, which is no number at 0."""

    def gradient(self, w):
        return w / w.abs()


class ByStrides(L1):
    """memory-order: lays the gradient out as the weight lies, but fills it in order."""

    def gradient(self, w):
        flat = torch.empty(w.numel(), dtype=w.dtype, device=w.device)
        flat.copy_(w.reshape(-1).sign())
        return flat if not w.ndim else torch.as_strided(flat, w.shape, w.stride())


class MeanOfRows(Penalty):
    """shapes: the gradient is divided by the number of columns, which a convolution has not."""

    def value(self, w):
        return w.flatten(1).square().mean(1).sum() if w.ndim > 1 else w.square().mean()

    def gradient(self, w):
        return 2 * w / (w.shape[-1] if w.ndim else 1)


class SinglePrecision(Penalty):
    """finite-difference: computes in float32, whatever the weights are."""

    def value(self, w):
        return w.float().square().sum().to(w.dtype)


class SubtractsMean(Penalty):
    """runs: centres the weight that it is given, to measure its variance."""

    def value(self, w):
        return w.sub(w.mean()).square().sum()

    def gradient(self, w):
        w -= w.mean()
        return 2 * w


class Rescales(Penalty):
    """proximal: group shrinkage in which a group that is gone comes back, turned around."""

    def value(self, w):
        return w.flatten(1).norm(dim=1).sum() if w.ndim > 1 else w.abs().sum()

    def proximal(self, w, step):
        rows = w.flatten(1) if w.ndim > 1 else w.reshape(-1, 1)
        scale = 1 - step * self.strength / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return (rows * scale).reshape(w.shape)


class ClipsValue(Penalty):
    """finite-difference: caps its value by a number that autograd does not see."""

    def value(self, w):
        value = w.square().sum()
        return value / (value.detach() / 50).clamp(min=1)


# --- devices ----------------------------------------------------------------------------------


class ZerosOnDefault(L1):
    """device: makes its mask where tensors are made by default."""

    def gradient(self, w):
        mask = torch.ones(w.shape, dtype=w.dtype)
        return w.sign() * mask


class MaskByShape(Acts):
    """device: keeps a mask for each shape, on the device that came first."""

    masks = {}  # noqa: RUF012

    def act(self, session):
        for w in weights(session):
            here = regplug.local(w.detach())
            if here.shape not in self.masks:
                self.masks[here.shape] = torch.ones_like(here)
            mask = self.masks[here.shape].to(w.dtype)
            regplug.local(w.grad).add_(here.sign() * mask, alpha=self.signed(session))
