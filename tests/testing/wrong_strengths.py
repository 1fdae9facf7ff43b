"""Plugins that are wrong on purpose in their strength: kept, late, early, bent."""

from regplug import hookimpl
from regplug.schedules import as_schedule
from tests.testing.wrong_formulas import L1, Strong, weights


class Pulls(Strong):
    """Adds its sign; subclasses say what λ they take for it."""

    def now(self, session):
        return self.strength

    @hookimpl
    def on_gradients(self, session):
        strength = self.now(session)
        if strength:
            for w in weights(session):
                sign = -1 if any(group.get("maximize") for group in session.groups) else 1
                w.grad.add_(w.detach().sign(), alpha=sign * strength)


# --- strength -------------------------------------------------------------------------------


class KeptAtInit(Pulls):
    """strength: what was given first is what acts."""

    def __init__(self, strength=0.01, name=None):
        super().__init__(strength, name)
        self._kept = self.strength

    def now(self, session):
        return self._kept


class KeptAtAttach(Pulls):
    """strength: what was there at attach is what acts."""

    @hookimpl
    def on_attach(self, session):
        self._kept = self.strength

    def now(self, session):
        return self._kept


class Squared(L1):
    """strength: λ² is what arrives in the loss and at the step alike."""

    def _strength_now(self):
        return super()._strength_now() ** 2


class Capped(L1):
    """strength: no more than 0.2 arrives."""

    def _strength_now(self):
        return min(super()._strength_now(), 0.2)


class Whole(Pulls):
    """strength: rounded to whole hundredths where it acts."""

    def now(self, session):
        return round(self.strength, 2)


class NamesOnly(Pulls):
    """strength: there is one, and another number is what acts."""

    def now(self, session):
        return 0.01 if self.strength else 0.0


# --- schedule -------------------------------------------------------------------------------


class OneStepLate(Pulls):
    """schedule: what it reads after a step it takes for the next one, which has another."""

    @hookimpl
    def on_attach(self, session):
        self._now = self.strength

    def now(self, session):
        return self._now

    @hookimpl
    def after_step(self, session):
        self._now = self.strength


class OneStepEarly(Pulls):
    """schedule: counts the step that it is in as completed."""

    def now(self, session):
        return type(self).strength.at(self, session.steps + 1)


class OncePerEpoch(Pulls):
    """schedule: looks at it each hundred steps, and at once if a number is set."""

    @hookimpl
    def on_attach(self, session):
        self._given, self._now = vars(self)["strength"], self.strength

    def now(self, session):
        if session.steps % 100 == 0 or vars(self)["strength"] is not self._given:
            self._given, self._now = vars(self)["strength"], self.strength
        return self._now


class AsleepForGood(Pulls):
    """schedule: if it is 0 at the start, it is taken to be off."""

    @hookimpl
    def on_attach(self, session):
        self._off = self.strength == 0

    def now(self, session):
        return 0.0 if self._off else self.strength


class FloatAtInit(Strong):
    """schedule: no attribute that is scheduled, and the first number of a schedule for all."""

    strength = None

    def __init__(self, strength=0.01, name=None):
        self._lambda = as_schedule(strength, "strength")(0)
        self.name = name

    @hookimpl
    def before_step(self, session):
        for w in weights(session):
            w.mul_(1 - self._lambda)


class AtInitInProximal(L1):
    """strength: its operator has the number of the constructor; in the other deliveries not."""

    def __init__(self, strength, *, where="weights", delivery="auto", name=None):
        super().__init__(strength, where=where, delivery=delivery, name=name)
        self._kept = self.strength

    def proximal(self, w, step):
        return w.sign() * (w.abs() - step * self._kept).clamp(min=0)


class NextOneReady(Pulls):
    """A look-alike: prepares the next step's number, by the schedule's own word."""

    @hookimpl
    def on_attach(self, session):
        self._ready = (session.steps, vars(self)["strength"], self.strength)

    def now(self, session):
        step, of, ready = self._ready
        return ready if (step, of) == (session.steps, vars(self)["strength"]) else self.strength

    @hookimpl
    def after_step(self, session):
        following = session.steps + 1
        self._ready = following, vars(self)["strength"], type(self).strength.at(self, following)
