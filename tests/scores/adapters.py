"""What the adapters have in common: maps of weights and of gradients, and an entry of the table.

An adapter is as short as can be: the formula is the library's own code, and regplug's base classes
do the rest. Nothing in an adapter makes up for a fault of the library.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

import regplug
from regplug import full, local, part


@dataclass(frozen=True)
class Entry:
    """A public regularizer that sits the exam.

    Attributes:
        library: the name of its distribution, or of the project that a formula is retyped from.
        name: what the library calls it.
        make: returns a new plugin, its adapter.
        retyped: whether the formula was written anew from the library's source, and is not run.
    """

    library: str
    name: str
    make: Callable[[], regplug.Plugin]
    retyped: bool = False

    @property
    def key(self) -> str:
        """What the table and ``python -m tests.scores.run`` call it."""
        return f"{self.library} {self.name}"


class OfWeights(regplug.Selective):
    """After each step w ← map(w): a constraint, a parametrization, pruning."""

    order_matters = True
    reads_gradients = False
    by_pattern = True
    bound = regplug.Scheduled(off=None)

    def __init__(self, bound=1.0, *, where="weights", name=None):
        self.bound, self.where, self.name = bound, where, name

    def mapped(self, w):
        raise NotImplementedError

    @regplug.hookimpl
    def on_attach(self, session):
        session.coverage(self._selection)  # a selection that covers nothing is refused here

    @regplug.hookimpl
    def after_step(self, session):
        for _, weights, _ in self.by_part(session):
            for w in weights:
                local(w).copy_(part(self.mapped(full(w)), w))


class OfGradients(regplug.Selective):
    """Before each step g ← map(w, g): clipping, centralization."""

    order_matters = True
    by_pattern = True
    bound = regplug.Scheduled(off=None)

    def __init__(self, bound=1.0, *, where="weights", name=None):
        self.bound, self.where, self.name = bound, where, name

    def mapped(self, w, g):
        raise NotImplementedError

    @regplug.hookimpl
    def on_attach(self, session):
        session.coverage(self._selection)

    @regplug.hookimpl
    def on_gradients(self, session):
        for _, weights, gradients in self.by_part(session):
            for w, g in zip(weights, gradients, strict=True):
                local(g).copy_(part(self.mapped(full(w), full(g).clone()), w))


class Decay(regplug.Selective):
    """Before each step w ← decayed(w): what a library's weight decay does to a weight."""

    reads_gradients = False
    by_pattern = True
    rate = regplug.Scheduled()

    def __init__(self, rate, *, where="weights", name=None):
        self.rate, self.where, self.name = rate, where, name

    def decay_(self, w: torch.Tensor, lr) -> None:
        raise NotImplementedError

    @regplug.hookimpl
    def on_attach(self, session):
        session.coverage(self._selection)

    @regplug.hookimpl
    def before_step(self, session):
        for index, weights, _ in self.by_part(session):
            if self.rate != 0:
                for w in weights:
                    self.decay_(local(w), session.learning_rate(index))
