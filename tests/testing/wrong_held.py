"""Plugins that hold on to something: a weight's numbers, a name, a first model, a count, a part."""

import fnmatch
import itertools

import torch
from torch import nn

import regplug
from regplug import JointPenalty, Penalty, Plugin, Scheduled, Selective, hookimpl, local

# --- arguments, and models --------------------------------------------------------------------


class Decays(Selective):
    """A careful plugin with a rate, for the ones below."""

    rate = Scheduled()

    def __init__(self, rate=0.1, *, where="weights", name=None):
        self.rate, self.where, self.name = rate, where, name

    def decay(self, session, rate):
        for index, ws, _ in session.updates(self._selection):
            for w in ws:
                local(w).mul_(1 - session.learning_rate(index) * rate)


class RenamesItself(Decays):
    """arguments: puts its name together anew when it is attached."""

    @hookimpl
    def on_attach(self, session):
        self.name = f"decay_{len(session.coverage(self._selection))}"

    @hookimpl
    def before_step(self, session):
        self.decay(session, self.rate)


class ForgetsDeliveryOfSeveral(JointPenalty):
    """arguments: a penalty of several weights that does not hand its delivery on."""

    def __init__(self, strength, *, where="weights", delivery="auto", name=None):
        super().__init__(strength, where=where, name=name)

    def groups(self, session):
        found = [m.weight for m in session.model.modules() if isinstance(m, nn.Linear)]
        yield from itertools.pairwise(found)

    def value(self, first, second):
        return (first.square().mean() - second.square().mean()).square()


class OwnPatterns(Plugin):
    """where: compares names by itself, and knows neither lists nor functions."""

    rate = Scheduled()

    def __init__(self, rate=0.1, *, where="*weight", name=None):
        self.rate, self.where, self.name = rate, where, name

    @hookimpl
    def before_step(self, session):
        for group in session.groups:
            own = {id(p) for p in group["params"]}
            for name, p in session.model.named_parameters():
                if id(p) in own and p.grad is not None and fnmatch.fnmatch(name, self.where):
                    p.mul_(1 - group["lr"] * self.rate)


class WidensWhere(Penalty):
    """where: chooses matrices when it is attached, whatever it was told."""

    separable = True

    def value(self, w):
        return w.square().sum()

    @hookimpl
    def on_attach(self, session):
        self.where = lambda name, parameter, module: parameter.ndim > 1
        super().on_attach(session)


class Anchored(Selective):
    """Pulls weights to where they were at attach, for the ones below."""

    strength = Scheduled()
    order_matters = True

    def __init__(self, strength=0.05, *, where="weights", name=None):
        self.strength, self.where, self.name = strength, where, name
        self.anchors = {}

    def find(self, session):
        for entry in session.coverage(self._selection):
            self.anchors[entry.name] = entry.parameter.detach().clone()

    @hookimpl
    def before_step(self, session):
        names = {id(e.parameter): e.name for e in session.coverage(self._selection)}
        for index, ws, _ in session.updates(self._selection):
            share = float(session.learning_rate(index)) * self.strength
            for w in ws:
                local(w).lerp_(local(self.anchors[names[id(w)]]), share)


class AnchorsOfAll(Anchored):
    """attach-again: the anchors of all instances are in one dict, by name."""

    kept = {}  # noqa: RUF012

    def __init__(self, strength=0.05, *, where="weights", name=None):
        super().__init__(strength, where=where, name=name)
        self.anchors = self.kept

    @hookimpl
    def on_attach(self, session):
        self.find(session)

    @hookimpl
    def on_detach(self, session):
        self.anchors.clear()


class AnchorsOfTheFirst(Anchored):
    """attach-again: the anchors of the first model stay, though they are saved as they should."""

    @hookimpl
    def on_attach(self, session):
        if not self.anchors:
            self.find(session)

    @hookimpl
    def on_state(self, session):
        return {"anchors": dict(self.anchors)}

    @hookimpl
    def on_load_state(self, session, state):
        self.anchors = dict(state["anchors"])


# --- formulas ---------------------------------------------------------------------------------


class GradientByAddress(Penalty):
    """pure: keeps the gradient of what lies at an address."""

    separable = True

    def __init__(self, strength=0.01, *, where="weights", delivery="auto", name=None):
        super().__init__(strength, where=where, delivery=delivery, name=name)
        self.known = {}

    def value(self, w):
        return w.square().sum()

    def gradient(self, w):
        if w.data_ptr() not in self.known:
            self.known[w.data_ptr()] = 2 * w.detach().clone()
        return self.known[w.data_ptr()]


class GradientByVersion(GradientByAddress):
    """pure: keeps it by address and version, of which ``.data`` takes no note."""

    def gradient(self, w):
        key = w.data_ptr(), w._version, w.shape, w.dtype
        if key not in self.known:
            self.known[key] = 2 * w.detach().clone()
        return self.known[key]


class Saturates(Penalty):
    """extremes: ∞/∞ where weights have no finite square."""

    separable = True

    def value(self, w):
        return (w.square() / (1 + w.square())).sum()

    def gradient(self, w):
        return 2 * w / (1 + w.square()).square()


class ShrinksByRatio(Penalty):
    """proximal: 0/0 for a weight of 0 that is to stay."""

    separable = True

    def value(self, w):
        return w.abs().sum()

    def gradient(self, w):
        return w.sign()

    def proximal(self, w, step):
        return w * ((w.abs() - step * self.strength) / w.abs()).clamp(min=0)


# --- strengths --------------------------------------------------------------------------------


class AlphaForgotten(Penalty):
    """schedule: takes alpha, and hands another number on."""

    separable = True

    def __init__(self, alpha=0.05, *, where="weights", delivery="auto", name=None):
        super().__init__(0.05, where=where, delivery=delivery, name=name)

    def value(self, w):
        return w.square().sum()


class CountsSinceAttach(Decays):
    """schedule: counts steps from attach on, so that a resumed run begins anew."""

    @hookimpl
    def on_attach(self, session):
        self.count = 0

    @hookimpl
    def before_step(self, session):
        self.decay(session, type(self).rate.at(self, self.count))
        self.count += 1


class CountsLosses(Selective):
    """schedule: counts calls of ``session.loss`` in place of steps, a validation's too."""

    strength = Scheduled()

    def __init__(self, strength=0.01, *, where="weights", name=None):
        self.strength, self.where, self.name = strength, where, name

    @hookimpl
    def on_attach(self, session):
        if session.coverage(self._selection).names and torch.distributed.is_initialized():
            raise regplug.errors.UnsupportedError(f"{self.name}: use a Penalty on several ranks")
        self.count = -1

    @hookimpl
    def on_loss(self, session):
        self.count += 1
        strength = type(self).strength.at(self, self.count)
        if not strength:
            return None
        sign = -1 if session.groups[0].get("maximize") else 1
        ws = [e.parameter.float() for e in session.coverage(self._selection).trainable]
        return sign * strength * torch.stack([w.square().sum() for w in ws]).sum()


class OneRateForAllParts(Decays):
    """strength: reads its rate before the loop over parts."""

    by_pattern = True

    @hookimpl
    def before_step(self, session):
        rate = self.rate
        for index, ws, _ in self.by_part(session):
            for w in ws:
                local(w).mul_(1 - session.learning_rate(index) * rate)


class NoParts(Decays):
    """strength: says that it takes patterns, and goes through all weights alike."""

    by_pattern = True

    @hookimpl
    def before_step(self, session):
        self.decay(session, self.rate)
