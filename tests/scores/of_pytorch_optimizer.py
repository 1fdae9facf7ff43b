"""pytorch_optimizer's building blocks: decays, clipping, centralization, FTRL's shrinkage."""

import torch
from pytorch_optimizer import FTRL
from pytorch_optimizer.base.optimizer import BaseOptimizer
from pytorch_optimizer.optimizer.agc import agc
from pytorch_optimizer.optimizer.gradient_centralization import centralize_gradient
from torch import nn

import regplug
from regplug import local
from tests.scores.adapters import BoundedGradients, Decay, Entry, OfGradients, Scaled


class Coupled(Scaled):
    """Before each step g ← g + rate·w."""

    @regplug.hookimpl
    def on_gradients(self, session):
        for index, weights, gradients in self.by_part(session):
            sign = -1 if session.groups[index].get("maximize") else 1
            lr = session.learning_rate(index)
            for w, g in zip(weights, gradients, strict=True):
                BaseOptimizer.apply_weight_decay(
                    local(w) * sign,
                    local(g),
                    lr,
                    self.rate,
                    weight_decouple=False,
                    fixed_decay=False,
                )


class Decoupled(Decay):
    def decay_(self, w, lr):
        BaseOptimizer.apply_weight_decay(
            w, None, lr, self.rate, weight_decouple=True, fixed_decay=False
        )


class Fixed(Decay):
    """Not by the learning rate."""

    def decay_(self, w, lr):
        BaseOptimizer.apply_weight_decay(
            w, None, lr, self.rate, weight_decouple=True, fixed_decay=True
        )


class AdaptiveClipping(BoundedGradients):
    def mapped(self, w, g):
        return agc(w, g, agc_clip_val=self.bound)


class Centralization(OfGradients):
    def mapped(self, w, g):
        centralize_gradient(g)
        return g


class Shrinkage(regplug.Penalty):
    """λ·Σ|w| by FTRL: one of its steps from 0 along −w, its adaptive rate taken out by β = lr."""

    separable = True

    def value(self, w):
        return w.abs().sum()

    def proximal(self, w, step):
        # FTRL takes a number; the operator is homogeneous, so w goes in and out by its step.
        # An element with a step of 0 is to stay as it is.
        unit = torch.as_tensor(step, dtype=w.dtype, device=w.device)
        scaled = w / torch.where(unit > 0, unit, 1)
        p = nn.Parameter(torch.zeros_like(scaled))
        p.grad = -scaled
        FTRL([p], lr=1e12, lr_power=0.0, beta=1e12, lambda_1=self.strength).step()
        return torch.where(unit > 0, p.detach() * unit, w)


ENTRIES = [
    Entry("pytorch_optimizer", "weight decay, coupled", lambda: Coupled(0.1)),
    Entry("pytorch_optimizer", "weight decay, decoupled", lambda: Decoupled(0.1)),
    Entry("pytorch_optimizer", "weight decay, fixed", lambda: Fixed(0.01)),
    Entry("pytorch_optimizer", "agc", lambda: AdaptiveClipping(0.01)),
    Entry("pytorch_optimizer", "centralize_gradient", Centralization),
    Entry("pytorch_optimizer", "FTRL(lambda_1=)", lambda: Shrinkage(1e-3)),
]
