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


class _Selected(regplug.Selective):
    by_pattern = True

    def __init__(self, *, where="weights", name=None):
        self.where, self.name = where, name

    @regplug.hookimpl
    def on_attach(self, session):
        session.coverage(self._selection)  # a selection that covers nothing is refused here


class _Bounded(_Selected):
    bound = regplug.Scheduled(off=None)

    def __init__(self, bound, *, where="weights", name=None):
        super().__init__(where=where, name=name)
        self.bound = bound


class OfWeights(_Selected):
    """After each step w ← map(w): a constraint, a parametrization, pruning."""

    order_matters = True
    reads_gradients = False

    def mapped(self, w):
        raise NotImplementedError

    @regplug.hookimpl
    def after_step(self, session):
        for _, weights, _ in self.by_part(session):
            for w in weights:
                local(w).copy_(part(self.mapped(full(w)), w))


class Bounded(OfWeights, _Bounded):
    """A map of weights with a bound, or another number that a schedule may change."""


class OfGradients(_Selected):
    """Before each step g ← map(w, g): centralization."""

    order_matters = True

    def mapped(self, w, g):
        raise NotImplementedError

    @regplug.hookimpl
    def on_gradients(self, session):
        for _, weights, gradients in self.by_part(session):
            for w, g in zip(weights, gradients, strict=True):
                local(g).copy_(part(self.mapped(full(w), full(g).clone()), w))


class BoundedGradients(OfGradients, _Bounded):
    """A map of gradients with a bound: clipping."""


class Scaled(_Selected):
    """Has a rate, of which 0 is none."""

    reads_gradients = False
    rate = regplug.Scheduled()

    def __init__(self, rate, *, where="weights", name=None):
        super().__init__(where=where, name=name)
        self.rate = rate


class Decay(Scaled):
    """Before each step w ← decayed(w): what a library's weight decay does to a weight."""

    def decay_(self, w: torch.Tensor, lr) -> None:
        raise NotImplementedError

    @regplug.hookimpl
    def before_step(self, session):
        for index, weights, _ in self.by_part(session):
            if self.rate != 0:
                for w in weights:
                    self.decay_(local(w), session.learning_rate(index))
