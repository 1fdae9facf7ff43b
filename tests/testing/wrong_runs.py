"""Plugins that never act, or that end, hang or outwait the process; and some that only look so."""

import ctypes
import itertools
import os
import sys

import torch
import torch.distributed as dist

import regplug
from regplug import hookimpl
from tests.testing.wrong_formulas import L1, Strong, weights


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


class Acts(Strong):
    """A careful plugin of another kind than a penalty, for the ones below."""

    @hookimpl
    def on_gradients(self, session):
        self.act(session)

    def act(self, session):
        for w in weights(session):
            w.grad.add_(w.detach().sign(), alpha=self.signed(session))


# --- it ends, or does not come to an end ------------------------------------------------------


class Exits(Acts):
    """runs: gives up in the middle of training, as a script may, but a plugin must not."""

    def act(self, session):
        if session.steps == 2:
            sys.exit("strength is too small")
        super().act(session)


class ExitsAtOnce(Acts):
    """runs: the process is gone before anybody can ask."""

    @hookimpl
    def on_attach(self, session):
        os._exit(3)


class Crashes(Acts):
    """runs: reads where there is nothing, in C."""

    def act(self, session):
        ctypes.string_at(0)


class ExitsInMetrics(Acts):
    """runs: trains, but ends the process of whoever asks it."""

    @hookimpl
    def on_metrics(self, session):
        os._exit(0)


class NeverConverges(L1):
    """runs: waits for a bound that float64 does not reach, in half of all cases."""

    def value(self, w):
        root = torch.ones((), dtype=w.dtype)
        target = float(w.detach().square().sum())
        while abs(float(root) ** 2 - target) > 0:  # the square of no float need be the target
            root = (root + target / root) / 2
        return w.abs().sum() * (1 + 0 * root)


class Interrupts(Acts):
    """runs: raises what no ``except Exception`` stops."""

    def act(self, session):
        raise KeyboardInterrupt


class RaisesAlways(Acts):
    """runs: has a mistake in the very line that does the work."""

    def act(self, session):
        for w in weights(session):
            w.grad.add_(w.detach().sine(), alpha=self.signed(session))


# --- one rank is alone ------------------------------------------------------------------------


class WaitsForOthers(Acts):
    """collective: only the main process synchronises."""

    def act(self, session):
        if dist.is_initialized() and rank() == 0:
            dist.barrier()
        super().act(session)


class MetricOnMain(Acts):
    """collective: sums up a metric over all ranks, on the main process alone."""

    @hookimpl
    def on_metrics(self, session):
        total = torch.ones((), device="cpu")
        if dist.is_initialized() and rank() == 0:
            dist.all_reduce(total)
        return {"norm": 1.0}


class LeavesRank(Acts):
    """collective: what is not the main process has nothing to do, and goes."""

    def act(self, session):
        if rank() > 0:
            os._exit(0)
        super().act(session)


class SumsOnAll(Acts):
    """Right: it synchronises too, but on all ranks alike."""

    @hookimpl
    def on_metrics(self, session):
        total = torch.ones((), device="cpu")
        if dist.is_initialized():
            dist.all_reduce(total)
            total /= dist.get_world_size()
        return {"ranks": float(total)}


# --- it never acts ----------------------------------------------------------------------------


class Empty(Strong):
    """acts: forgot the body."""

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            _ = w.grad + self.strength * w.detach().sign()


class EveryTenth(Acts):
    """acts: counts its calls, and acts in every tenth only."""

    calls = 0

    def act(self, session):
        self.calls += 1
        if self.calls % 10 == 0:
            super().act(session)


class OnlyAfterLoss(Acts):
    """acts: waits for the loss event, and does not say so."""

    ready = False

    @hookimpl
    def on_loss(self, session, loss):
        self.ready = True

    def act(self, session):
        if self.ready:
            super().act(session)


class ToZero(L1):
    """acts: its gradient is nothing but rounding."""

    def value(self, w):
        return (w - w.detach()).sum() * 0

    def gradient(self, w):
        return torch.zeros_like(w)


class SaysThatItWaits(OnlyAfterLoss):
    """Right: it waits for the loss event, and says so."""

    def waits_for_loss(self, session):
        return True

    def act(self, session):
        if self.ready:
            super().act(session)
        self.ready = False


class EveryThird(Acts):
    """Right: acts in every third step, counts them for itself, and remembers the count."""

    def __init__(self, strength=0.01, name=None):
        super().__init__(strength, name)
        self.calls = 0

    def act(self, session):
        if self.calls % 3 == 2:
            super().act(session)

    @hookimpl
    def after_step(self, session):
        self.calls += 1

    @hookimpl
    def on_state(self, session):
        return {"calls": self.calls}

    @hookimpl
    def on_load_state(self, session, state):
        self.calls = state["calls"]


class Watches(regplug.Plugin):
    """Right: only reports, and changes nothing."""

    @hookimpl
    def on_metrics(self, session):
        parameters = [p for group in session.groups for p in group["params"]]
        return {"tensors": float(len(parameters))}


class Newton(L1):
    """Right: iterates, but not for ever."""

    def value(self, w):
        root = w.abs().sum()
        for _ in itertools.repeat(None, 20):
            root = (root + w.abs().sum() / root.clamp(min=1e-30) * w.abs().sum()) / 2
        return root


class OnlyWhereLarge(regplug.Penalty):
    """Right: acts on weights beyond 50 alone."""

    separable = True

    def value(self, w):
        return (w.abs() - 50).clamp(min=0).square().sum()
