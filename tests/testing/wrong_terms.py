"""Plugins that are wrong on purpose in the loss event."""

import torch

from regplug import Plugin, hookimpl, widened
from regplug.errors import UnsupportedError
from tests.testing.wrong_formulas import L1, Strong


def size(session):
    """What a plugin in the loss may measure."""
    weights = [widened(p) for p in session.model.parameters() if p.ndim > 1]
    return torch.stack([w.abs().sum() for w in weights]).sum()


class Term(Strong):
    """Adds λ·Σ|w|; a look-alike of those below."""

    @hookimpl
    def on_loss(self, session, loss):
        return self.signed(session) * size(session)


class Flooding(Plugin):
    """A look-alike: keeps the loss above a level, so that its term is one of the loss."""

    shapes_loss = True

    def __init__(self, level=100.0, name=None):
        self.level, self.name = level, name

    @hookimpl
    def on_attach(self, session):
        if any(group.get("maximize") for group in session.groups):
            raise UnsupportedError("there is no level that a loss to maximize stays above")

    @hookimpl
    def on_loss(self, session, loss):
        return (loss - self.level).abs() + self.level - loss + 0 * size(session)


class KeepsANumber(Strong):
    """A look-alike: remembers its last term, and the sum of all as a number."""

    @hookimpl
    def on_attach(self, session):
        self.last, self.total = None, 0.0

    @hookimpl
    def on_loss(self, session, loss):
        self.last = self.signed(session) * size(session)
        self.total += float(self.last.detach())
        return self.last


class LossAndTerm(Strong):
    """loss-event: returns what the loss should become."""

    @hookimpl
    def on_loss(self, session, loss):
        return loss + self.strength * size(session)


class LossAndTermOfPenalty(L1):
    """loss-event: a penalty that scales itself by the loss."""

    @hookimpl
    def on_loss(self, session, loss):
        return 0.01 * loss.detach() * size(session) if self._settled != "step" else None


class InPlace(Strong):
    """loss-event: adds to the caller's tensor."""

    @hookimpl
    def on_loss(self, session, loss):
        loss.add_(self.strength * size(session))


class BehindItsBack(Strong):
    """loss-event: changes the caller's number, which autograd does not see, and adds the rest."""

    @hookimpl
    def on_loss(self, session, loss):
        term = self.strength * size(session)
        loss.data.add_(term.detach())
        return term - term.detach()


class HooksTheLoss(Strong):
    """loss-event: has a term, and doubles what the loss itself brings, by a hook on it."""

    @hookimpl
    def on_loss(self, session, loss):
        if loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * (1 + self.strength))
        return self.strength * size(session)


class NoGraph(Strong):
    """loss-event: a number."""

    @hookimpl
    def on_loss(self, session, loss):
        return torch.tensor(self.strength * float(size(session).detach()), dtype=loss.dtype)


class RunningTotal(Strong):
    """runs: a sum of all terms that there were, with their graphs."""

    @hookimpl
    def on_attach(self, session):
        self.total = 0.0

    @hookimpl
    def on_loss(self, session, loss):
        self.total = self.total + self.strength * size(session)
        return self.total


class HoldsGraphs(Strong):
    """loss-event: returns its term, and adds it up for a metric, with all of its graph."""

    @hookimpl
    def on_attach(self, session):
        self.total = torch.zeros(())

    @hookimpl
    def on_loss(self, session, loss):
        term = self.strength * size(session)
        self.total = self.total + term
        return term


class EverySecond(Strong):
    """loss-event: each second call has no term."""

    calls = 0

    @hookimpl
    def on_loss(self, session, loss):
        self.calls += 1
        return self.strength * size(session) if self.calls % 2 else None


class CallsBackward(Strong):
    """loss-event: brings its gradient itself, and gives a number to see."""

    @hookimpl
    def on_loss(self, session, loss):
        (self.strength * size(session)).backward()


class NotInValidation(L1):
    """loss-event: a penalty that a validation loss lacks."""

    @hookimpl
    def on_loss(self, session):
        if not session.model.training:
            return None
        return super().on_loss(session)
