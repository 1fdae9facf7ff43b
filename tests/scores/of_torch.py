"""Torch's own: parametrizations, pruning, clipping, dropout, and its optimizers' weight decay."""

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, parametrizations, prune

import regplug
from tests.scores.adapters import Bounded, BoundedGradients, Decay, Entry, OfWeights


class _Parametrization(OfWeights):
    """After each step w ← what the parametrization makes of a layer that has the weight w."""

    def parametrized(self, layer):
        raise NotImplementedError

    def mapped(self, w):
        layer = nn.Module()  # a layer of a kind would draw a weight at random first
        layer.weight = nn.Parameter(w.flatten(1).clone())
        return self.parametrized(layer).weight.detach().reshape(w.shape)


class Orthogonal(_Parametrization):
    def parametrized(self, layer):
        return parametrizations.orthogonal(layer)


class SpectralNorm(_Parametrization):
    def parametrized(self, layer):
        return parametrizations.spectral_norm(layer)


class WeightNorm(_Parametrization, Bounded):
    """With the magnitude of each row at the bound."""

    def parametrized(self, layer):
        parametrizations.weight_norm(layer)
        with torch.no_grad():
            layer.parametrizations.weight.original0.fill_(self.bound)
        return layer


class Unstructured(Bounded):
    bound = regplug.Scheduled(high=1.0)

    def mapped(self, w):
        return prune.L1Unstructured(amount=self.bound).prune(w)


class Structured(Bounded):
    """Whole rows are pruned, those with the smallest norm."""

    bound = regplug.Scheduled(high=1.0)

    def mapped(self, w):
        return prune.LnStructured(amount=self.bound, n=2, dim=0).prune(w)


class ClipNorm(BoundedGradients):
    """Each gradient alone, so that what it does to one is no matter of the others."""

    def mapped(self, w, g):
        p = nn.Parameter(w.detach().clone())
        p.grad = g
        clip_grad_norm_(p, self.bound)
        return p.grad


class ClipValue(BoundedGradients):
    def mapped(self, w, g):
        p = nn.Parameter(w.detach().clone())
        p.grad = g
        clip_grad_value_(p, self.bound)
        return p.grad


class Dropout(regplug.Plugin):
    """Sets the rate of the model's dropouts, which are torch's own."""

    changes_weights = False
    stochastic = True
    rate = regplug.Scheduled(high=1.0, off=None)

    def __init__(self, rate, *, name=None):
        self.rate, self.name = rate, name

    @regplug.hookimpl
    def on_attach(self, session):
        self._own = [(m, m.p) for m in session.model.modules() if type(m) is nn.Dropout]
        self._set(session.steps)

    def _set(self, step):
        for module, _ in self._own:
            module.p = type(self).rate.at(self, step)

    @regplug.hookimpl
    def after_step(self, session):
        self._set(session.steps + 1)

    @regplug.hookimpl
    def on_load_state(self, session):
        self._set(session.steps)

    @regplug.hookimpl
    def on_detach(self, session):
        for module, own in self._own:
            module.p = own


class _OwnDecay(Decay):
    """What an optimizer does to a weight by ``weight_decay`` alone: a step with a gradient of 0."""

    def optimizer(self, w, lr):
        raise NotImplementedError

    def decay_(self, w, lr):
        p = nn.Parameter(w.detach())  # the same memory
        p.grad = torch.zeros_like(p)
        self.optimizer(p, lr).step()


class OfSGD(_OwnDecay):
    def optimizer(self, p, lr):
        return torch.optim.SGD([p], lr=lr, weight_decay=self.rate)


class OfAdam(_OwnDecay):
    """Divided by its own size, so it is no multiple of the weight."""

    order_matters = True

    def optimizer(self, p, lr):
        return torch.optim.Adam([p], lr=lr, weight_decay=self.rate)


class OfAdamW(_OwnDecay):
    def optimizer(self, p, lr):
        return torch.optim.AdamW([p], lr=lr, weight_decay=self.rate)


ENTRIES = [
    Entry("torch", "parametrizations.orthogonal", Orthogonal),
    Entry("torch", "parametrizations.spectral_norm", SpectralNorm),
    Entry("torch", "parametrizations.weight_norm", lambda: WeightNorm(1.0)),
    Entry("torch", "prune.L1Unstructured", lambda: Unstructured(0.5)),
    Entry("torch", "prune.LnStructured", lambda: Structured(0.5)),
    Entry("torch", "clip_grad_norm_", lambda: ClipNorm(0.01)),
    Entry("torch", "clip_grad_value_", lambda: ClipValue(0.1)),
    Entry("torch", "nn.Dropout", lambda: Dropout(0.5)),
    Entry("torch", "optim.SGD(weight_decay=)", lambda: OfSGD(0.1)),
    Entry("torch", "optim.Adam(weight_decay=)", lambda: OfAdam(0.1)),
    Entry("torch", "optim.AdamW(weight_decay=)", lambda: OfAdamW(0.1)),
]
