"""Plugins that are wrong on purpose in what becomes of their arguments, and of their instances."""

import fnmatch
from typing import ClassVar

import regplug
from regplug import Penalty, Scheduled, hookimpl
from tests.testing.wrong_formulas import L1, Strong, weights

# --- arguments ------------------------------------------------------------------------------


class ForgetsWhere(L1):
    """arguments: takes ``where`` and does not pass it on."""

    def __init__(self, strength, *, where="weights", delivery="auto", name=None):
        super().__init__(strength, delivery=delivery, name=name)


class ForgetsDelivery(L1):
    """arguments: takes ``delivery`` and is at the step always."""

    def __init__(self, strength, *, where="weights", delivery="auto", name=None):
        super().__init__(strength, where=where, delivery="step", name=name)


class ForgetsName(L1):
    """arguments: has one name for all."""

    def __init__(self, strength, *, where="weights", delivery="auto", name=None):
        super().__init__(strength, where=where, delivery=delivery, name="lasso")


class SwallowsKeywords(L1):
    """arguments: takes whatever comes, and does nothing with it."""

    def __init__(self, strength, **options):
        super().__init__(strength)


class Swapped(Penalty):
    """arguments: each strength is set to the other's number."""

    l1_strength = Scheduled()
    l2_strength = Scheduled()
    separable = True

    def __init__(self, l1=0.02, l2=0.05, *, where="weights", delivery="auto", name=None):
        super().__init__(1.0, where=where, delivery=delivery, name=name)
        self.l1_strength, self.l2_strength = l2, l1

    def value(self, w):
        return self.l1_strength * w.abs().sum() + self.l2_strength * w.square().sum()


class Rounds(L1):
    """arguments: keeps three digits of a number."""

    def __init__(self, strength, *, where="weights", delivery="auto", name=None):
        if isinstance(strength, float):
            strength = round(strength, 3)
        super().__init__(strength, where=where, delivery=delivery, name=name)


class FreezesSchedule(L1):
    """arguments: takes the first value of a schedule for all of it."""

    def __init__(self, strength, *, where="weights", delivery="auto", name=None):
        if callable(strength):
            strength = strength(0)
        super().__init__(strength, where=where, delivery=delivery, name=name)


class OnTheClass(L1):
    """arguments: keeps its selection where all instances see it."""

    _shared: ClassVar[list[object]] = ["weights"]

    def __init__(self, strength, *, where="weights", delivery="auto", name=None):
        super().__init__(strength, where=where, delivery=delivery, name=name)
        OnTheClass._shared[:] = [where]

    @property
    def where(self):
        return self._shared[0]

    @where.setter
    def where(self, where):
        Penalty.where.fset(self, where)


class EmptiesList(L1):
    """arguments: works on the list that it was given."""

    @hookimpl
    def on_attach(self, session):
        super().on_attach(session)
        if isinstance(self.where, list):
            self.where.sort(reverse=True)
            self.where.append("seen")


class OwnList(L1):
    """A look-alike: works on a copy, refuses unknown words, and has one more argument."""

    def __init__(self, strength, *, scale=2.0, where="weights", delivery="auto", name=None, **rest):
        super().__init__(strength, where=where, delivery=delivery, name=name, **rest)
        self.scale = scale

    @hookimpl
    def on_attach(self, session):
        super().on_attach(session)
        if isinstance(self.where, list):
            self.sorted = sorted(self.where)

    def value(self, w):
        return self.scale * w.abs().sum()

    def gradient(self, w):
        return self.scale * w.sign()


# --- where ----------------------------------------------------------------------------------


class IgnoresWhere(Strong):
    """where: keeps it, and acts on all weights."""

    def __init__(self, strength=0.01, *, where="weights", name=None):
        super().__init__(strength, name)
        self.where = where

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad.add_(w.detach().sign(), alpha=self.signed(session))


class MatchesSilently(IgnoresWhere):
    """where: patterns of its own, of which it tells nobody that none fits."""

    @hookimpl
    def on_gradients(self, session):
        names = {id(p): name for name, p in session.model.named_parameters()}
        patterns = ["*"] if self.where == "weights" else [self.where]
        for w in weights(session):
            if any(fnmatch.fnmatch(names[id(w)], str(p)) for p in patterns):
                w.grad.add_(w.detach().sign(), alpha=self.signed(session))


class HonoursWhereInLossOnly(L1):
    """where: at the step it takes all weights."""

    @hookimpl
    def on_gradients(self, session):
        chosen, self._selection = self._selection, regplug.Selection("weights")
        super().on_gradients(session)
        self._selection = chosen


class Selects(IgnoresWhere):
    """A look-alike: a plugin that is no penalty, with a selection of its own."""

    def __init__(self, strength=0.01, *, where="weights", name=None):
        super().__init__(strength, where=where, name=name)
        self.selection = regplug.Selection(where)

    @hookimpl
    def on_attach(self, session):
        session.coverage(self.selection)

    @hookimpl
    def on_gradients(self, session):
        for _, ws, gs in session.updates(self.selection):
            for w, g in zip(ws, gs, strict=True):
                g.add_(w.detach().sign(), alpha=self.signed(session))


# --- delivery -------------------------------------------------------------------------------


class HalfAtStep(L1):
    """delivery: at the step it has a factor of its own."""

    @hookimpl
    def on_gradients(self, session):
        kept, self.strength = self.strength, self.strength / 2
        super().on_gradients(session)
        self.strength = kept


class AutoIsBoth(L1):
    """delivery: left to itself it is in the loss, and at the step once more."""

    @hookimpl
    def on_gradients(self, session):
        if self.delivery == "auto":
            self._settled = "step"
        super().on_gradients(session)
        if self.delivery == "auto":
            self._settled = None


class HalfMap(L1):
    """delivery: its proximal operator is right, but is applied with half of the step."""

    def proximal(self, w, step):
        return w.sign() * (w.abs() - step * self.strength).clamp(min=0)

    @hookimpl
    def after_step(self, session):
        if self._settled == "proximal":
            for index, ws, _ in session.updates(self._selection):
                for w in ws:
                    w.copy_(self.proximal(w, session.groups[index]["lr"] / 2))


class OwnMap(L1):
    """A look-alike: applies its operator itself, with the step that it is."""

    def proximal(self, w, step):
        return w.sign() * (w.abs() - step * self.strength).clamp(min=0)

    @hookimpl
    def after_step(self, session):
        if self._settled == "proximal" and self.strength:
            rule = session.update_rule()
            for index, ws, gs in session.updates(self._selection):
                for w, g in zip(ws, gs, strict=True):
                    if not rule.elementwise:
                        step = rule.step(session.groups[index], {}, g)
                        w.copy_(self.proximal(w, step))


# --- attach-again ---------------------------------------------------------------------------


class FirstModelForEver(Strong):
    """attach-again: looks for its weights once, and never again."""

    found = None

    @hookimpl
    def on_gradients(self, session):
        if self.found is None:
            self.found = weights(session)
        for w in self.found:
            if w.grad is not None:
                w.grad.add_(w.detach().sign(), alpha=self.signed(session))


class SharedCount(Strong):
    """attach-again: counts steps on the class, and fades as they go by."""

    seen: ClassVar[dict[str, int]] = {}

    @hookimpl
    def on_attach(self, session):
        self.seen.clear()

    @hookimpl
    def before_step(self, session):
        count = self.seen["steps"] = self.seen.get("steps", -1) + 1
        for w in weights(session):
            w.mul_(1 - self.strength / (1 + (count > 2)))


class DefaultList(Strong):
    """attach-again: a default argument that is one list for all instances."""

    def __init__(self, strength=0.01, name=None, passed=[]):  # noqa: B006 - that is what is wrong
        super().__init__(strength, name)
        self.passed = passed

    @hookimpl
    def on_attach(self, session):
        self.passed.append(0)

    @hookimpl
    def before_step(self, session):
        for w in weights(session):
            w.mul_(1 - self.strength * len(self.passed))

    @hookimpl
    def on_detach(self, session):
        if self.passed:
            self.passed.pop()


class FirstComeFirstServed(L1):
    """attach-again: weights that another instance has seen in this step are left to that one."""

    seen: ClassVar[dict[int, tuple[int, object]]] = {}

    @hookimpl
    def on_gradients(self, session):
        for _, ws, gs in session.updates(self._selection):
            for w, g in zip(ws, gs, strict=True):
                step, owner = self.seen.get(id(w), (-1, None))
                if step == session.steps and owner != self.name:
                    continue
                self.seen[id(w)] = session.steps, self.name
                if self._settle(session) == "step":
                    maximize = any(group.get("maximize") for group in session.groups)
                    g.add_(w.detach().sign(), alpha=(-1 if maximize else 1) * self.strength)


class FindsAnew(Strong):
    """A look-alike: remembers its weights for one session, and their number on itself."""

    @hookimpl
    def on_attach(self, session):
        self.found, self.seen = None, {}

    @hookimpl
    def on_gradients(self, session):
        if self.found is None:
            self.found = []
        self.found += [id(w) for w in weights(session) if id(w) not in self.found]
        self.seen["steps"] = self.seen.get("steps", 0) + 1
        for w in weights(session):
            if id(w) in self.found:
                w.grad.add_(w.detach().sign(), alpha=self.signed(session))

    @hookimpl
    def on_detach(self, session):
        self.found, self.seen = None, {}
