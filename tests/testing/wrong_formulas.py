"""Formulas that are wrong on purpose, and what all wrong plugins share."""

from typing import Any

import torch

import regplug
from regplug import Penalty, Plugin, Scheduled, Session


class Strong(Plugin):
    """A plugin with a strength, for the ones below."""

    strength = Scheduled()

    def __init__(self, strength: Any = 0.01, name: str | None = None) -> None:
        self.strength = strength
        self.name = name

    def signed(self, session: Session) -> float:
        """Return the strength with the sign of what the optimizer does."""
        maximize = any(group.get("maximize") for group in session.groups)
        return -self.strength if maximize else self.strength


def weights(session: Session) -> list[torch.Tensor]:
    """What a careful plugin would act on."""
    selection = regplug.Selection("weights")
    return [w for _, ws, _ in session.updates(selection) for w in ws]


class L1(Penalty):
    separable = True

    def value(self, w):
        return w.abs().sum()

    def gradient(self, w):
        return w.sign()


class DetachedValue(L1):
    """differentiable: computes its value from ``w.data``."""

    def value(self, w):
        return w.data.abs().sum()

    def gradient(self, w):
        return w.sign()


class HalfGradient(Penalty):
    """gradient: states w as the gradient of Σw²."""

    separable = True

    def value(self, w):
        return w.square().sum()

    def gradient(self, w):
        return w


class HalfDetached(Penalty):
    """finite-difference: autograd sees one of two factors only."""

    separable = True

    def value(self, w):
        return (w.detach() * w).sum()


class HalfThreshold(L1):
    """proximal: shrinks by half of step·λ."""

    def proximal(self, w, step):
        threshold = step * self.strength / 2
        return w.sign() * (w.abs() - threshold).clamp(min=0)


class Expansive(L1):
    """proximal: doubles what is left."""

    def proximal(self, w, step):
        return 2 * w.sign() * (w.abs() - step * self.strength).clamp(min=0)


class ByRows(Penalty):
    """separable: says so, but its formula needs two dimensions."""

    separable = True

    def value(self, w):
        return w.abs().sum(dim=1).sum()


class WideGradient(L1):
    """dtype: returns float64, whatever it is given."""

    def gradient(self, w):
        return w.sign().to(torch.float64)


class WholeNorm(Penalty):
    """Calls a norm separable, so that shards and blocks take the norms of parts."""

    separable = True

    def value(self, w):
        return w.norm()
