"""Plugins that are wrong on purpose over their life: what they keep, give back, hide."""

from typing import Any

import torch

import regplug
from regplug import Plugin, Session, hookimpl
from tests.testing.wrong_formulas import Strong, weights


class Remembers(Strong):
    """Pulls weights towards their moving average, and remembers it as it should."""

    def __init__(self, strength: Any = 0.01, name: str | None = None) -> None:
        super().__init__(strength, name)
        self.steps_seen, self.average = 0, []

    @hookimpl
    def before_step(self, session):
        covered = weights(session)
        if not self.average:
            self.average = [regplug.local(w).clone() * 0.5 for w in covered]
        for w, average in zip(covered, self.average, strict=False):
            part = regplug.local(w)
            if part.shape == average.shape:
                part.add_(average - part, alpha=self.strength)
                average.lerp_(part, 0.1)
        self.steps_seen += 1

    @hookimpl
    def on_state(self, session):
        return {"steps_seen": self.steps_seen, "average": [a.clone() for a in self.average]}

    @hookimpl
    def on_load_state(self, session, state):
        self.steps_seen = state["steps_seen"]
        self.average = [a.clone() for a in state["average"]]


class OddState(Remembers):
    """state: saves a set, which a safe load refuses."""

    @hookimpl
    def on_state(self, session):
        return {**super().on_state(session), "strengths": {frozenset([self.strength])}}


class ForgetsAverage(Remembers):
    """resume: saves how often it acted, but not what it learned."""

    @hookimpl
    def on_state(self, session):
        return {"steps_seen": self.steps_seen}

    @hookimpl
    def on_load_state(self, session, state):
        self.steps_seen = state["steps_seen"]


class LeavesRates(Plugin):
    """restore: turns dropout off, for good."""

    @hookimpl
    def on_attach(self, session):
        for module in session.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0


class Decays(Strong):
    """Acts as it should, for the ones below."""

    @hookimpl
    def before_step(self, session):
        for w in weights(session):
            regplug.local(w).mul_(1 - self.strength)


class KeepsSessions(Decays):
    """leak: a list of all sessions there ever were."""

    sessions: list[Session] = []  # noqa: RUF012 - that is what is wrong with it

    @hookimpl
    def on_attach(self, session):
        self.sessions.append(session)


class Hoards(Decays):
    """leak: keeps every gradient there ever was."""

    @hookimpl
    def on_attach(self, session):
        self.history = []

    @hookimpl
    def on_gradients(self, session):
        self.history += [w.grad.clone() for w in weights(session)]


class Swallows(Strong):
    """attribution: goes on without a word when something fails."""

    @hookimpl
    def on_gradients(self, session):
        try:
            for w in weights(session):
                w.grad.add_(w.detach().sign(), alpha=self.signed(session))
        except Exception:
            pass


class SwallowsOperations(Strong):
    """attribution: asks its session for nothing, and hears of no operation that fails."""

    @hookimpl
    def before_step(self, session):
        groups = session.groups if session.optimizer is None else session.optimizer.param_groups
        for group in groups:
            for w in group["params"]:
                try:
                    if w.grad is not None and w.ndim > 1:
                        w.mul_(1 - self.strength)
                except Exception:
                    continue


class FloatRate(Strong):
    """compile: a rate that changes at each step, as the Python float that the graph is built on."""

    @hookimpl
    def on_attach(self, session):
        self._own = {m: m.p for m in session.model.modules() if isinstance(m, torch.nn.Dropout)}
        self._set(self.strength)

    def _set(self, rate):
        for module in self._own:
            module.p = rate

    @hookimpl
    def after_step(self, session):
        self._set(type(self).strength.at(self, session.steps + 1))

    @hookimpl
    def on_load_state(self, session):
        self._set(self.strength)

    @hookimpl
    def on_detach(self, session):
        for module, rate in self._own.items():
            module.p = rate
        self._own = {}
