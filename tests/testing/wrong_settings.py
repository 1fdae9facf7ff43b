"""Plugins that are wrong on purpose where the optimizer or the loop is of another kind."""

import torch

import regplug
from regplug import Penalty, hookimpl
from tests.testing.wrong_formulas import Strong, weights
from tests.testing.wrong_remains import Shrinks


class ForgetsMaximize(Strong):
    """Adds to gradients, whichever way they are followed."""

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad.add_(w.detach().sign(), alpha=self.strength)


class ForgetsMaximizeInLoss(Strong):
    """Returns a term that is maximized with the loss."""

    @hookimpl
    def on_loss(self, session):
        covered = session.coverage(regplug.Selection("weights")).trainable
        return self.strength * torch.stack([e.parameter.square().mean() for e in covered]).sum()


class TurnsTwice(Strong):
    """Turns its sign by the first group, and forgets that groups may differ: decay never turns."""

    @hookimpl
    def before_step(self, session):
        sign = -1 if session.groups[0].get("maximize") else 1
        for w in weights(session):
            w.mul_(1 - sign * self.strength)


class FirstGroupOnly(Strong):
    """Acts on the first group."""

    @hookimpl
    def before_step(self, session):
        for p in session.groups[0]["params"]:
            if p.grad is not None and p.ndim > 1:
                p.mul_(1 - self.strength)


class ByDefaults(Strong):
    """Decays by the learning rate of the optimizer's defaults."""

    @hookimpl
    def before_step(self, session):
        lr = session.optimizer.defaults["lr"] if session.optimizer else session.learning_rate(0)
        for w in weights(session):
            w.mul_(1 - float(lr) * self.strength)


class ByFirstRate(Strong):
    """Decays all by the learning rate of the first group."""

    @hookimpl
    def before_step(self, session):
        for w in weights(session):
            w.mul_(1 - float(session.learning_rate(0)) * self.strength)


class CapturesRate(Strong):
    """Decays by the learning rate that there was at its first step."""

    @hookimpl
    def on_attach(self, session):
        self._rates = {}

    @hookimpl
    def before_step(self, session):
        for index, ws, _ in session.updates(regplug.Selection("weights")):
            rate = self._rates.setdefault(index, float(session.learning_rate(index)))
            for w in ws:
                w.mul_(1 - rate * self.strength)


class DividesByRate(Strong):
    """Undoes the learning rate, by dividing."""

    @hookimpl
    def on_gradients(self, session):
        for index, ws, _ in session.updates(regplug.Selection("weights")):
            rate = float(session.learning_rate(index))
            sign = -1 if session.groups[index].get("maximize") else 1
            for w in ws:
                w.grad.add_(sign * self.strength * w.detach() / w.new_tensor(rate))


class ChangesTensorRate(Strong):
    """Does not know that a learning rate may be a tensor, and halves it in place."""

    @hookimpl
    def before_step(self, session):
        for index, ws, _ in session.updates(regplug.Selection("weights")):
            rate = session.learning_rate(index)
            if isinstance(rate, torch.Tensor):
                rate *= 0.5
            for w in ws:
                w.mul_(1 - float(rate) * self.strength)


class WantsOptimizer(Strong):
    """Goes by the optimizer, which is None in a loop by hand."""

    @hookimpl
    def before_step(self, session):
        for group in session.optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.ndim > 1:
                    p.mul_(1 - self.strength)


class IdleWithoutOptimizer(Shrinks):
    """Does nothing, and says nothing, in a loop by hand."""

    @hookimpl
    def before_step(self, session):
        if session.optimizer is not None:
            super().before_step(session)


class OnlyWatches(Shrinks):
    """Says that it does not change weights, and does."""

    changes_weights = False


class ShrinksEarly(Strong):
    """Changes weights while gradients are final, in on_gradients."""

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.mul_(1 - self.strength)


class LiesInLineSearch(Penalty):
    """Says in on_closure that its value is nothing."""

    separable = True

    def value(self, w):
        return w.square().sum()

    @hookimpl
    def on_closure(self, session):
        return 0.0


class CollectsAtAttach(Strong):
    """Remembers the weights that there are at attach."""

    @hookimpl
    def on_attach(self, session):
        covered = session.coverage(regplug.Selection("weights")).trainable
        self._weights = [entry.parameter for entry in covered]

    @hookimpl
    def before_step(self, session):
        for w in self._weights:
            if w.grad is not None:
                w.mul_(1 - self.strength)


class MasksAtAttach(Shrinks):
    """Leaves alone what had no gradient in the first step, for good."""

    @hookimpl
    def on_attach(self, session):
        self._names = None

    @hookimpl
    def before_step(self, session):
        covered = session.coverage(regplug.Selection("weights")).trainable
        taking = {e.name for e in covered if e.parameter.grad is not None}
        self._names = self._names or taking
        for entry in covered:
            if entry.name in self._names & taking:
                entry.parameter.mul_(1 - self.strength)


class CountsLosses(Strong):
    """Counts loss events, validation among them, and acts by the count."""

    losses = 0

    @hookimpl
    def on_loss(self, session, loss):
        self.losses += 1

    @hookimpl
    def before_step(self, session):
        for w in weights(session):
            w.mul_(1 - self.strength / (1 + (self.losses > 1)))


class TurnsToTrain(Shrinks):
    """Wants the model in training mode in each step."""

    @hookimpl
    def on_gradients(self, session):
        session.model.train()


class LooksWhetherCleared(Strong):
    """Takes gradients of zeros before backward for those of a step to be left out."""

    _waits = False

    @hookimpl
    def on_loss(self, session, loss):
        if torch.is_grad_enabled():
            gradients = [p.grad for p in session.model.parameters()]
            self._waits = all(g is not None and not g.any() for g in gradients)

    @hookimpl
    def before_step(self, session):
        for w in weights(session):
            if not self._waits:
                w.mul_(1 - self.strength)


# --- right ones that look alike ------------------------------------------------------------------


class Signed(Strong):
    """Right: turns its sign with each group's."""

    @hookimpl
    def on_gradients(self, session):
        for index, ws, _ in session.updates(regplug.Selection("weights")):
            sign = -1 if session.groups[index].get("maximize") else 1
            for w in ws:
                w.grad.add_(w.detach().sign(), alpha=sign * self.strength)


class ByOwnRate(Strong):
    """Right: decays by the learning rate of each group, in this step."""

    @hookimpl
    def before_step(self, session):
        for index, ws, _ in session.updates(regplug.Selection("weights")):
            for w in ws:
                w.mul_(1 - session.learning_rate(index) * self.strength)


class RelativeToFirstRate(Strong):
    """Right: decays by the rate relative to the first, as a schedule's shape."""

    @hookimpl
    def on_attach(self, session):
        self._first = {}

    @hookimpl
    def before_step(self, session):
        for index, ws, _ in session.updates(regplug.Selection("weights")):
            rate = float(session.learning_rate(index))
            first = self._first.setdefault(index, rate) or 1.0
            for w in ws:
                w.mul_(1 - rate / first * self.strength)
