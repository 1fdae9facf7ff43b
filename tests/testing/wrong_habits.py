"""Plugins that are wrong in one place only, by habits that are fine in a script: draws, loops."""

import os
import threading

import torch
import torch.distributed as dist
import torch.nn.functional as F

import regplug
from regplug import Penalty, Plugin, hookimpl, local
from tests.testing.wrong_formulas import Strong


class Decay(regplug.Selective):
    """A look-alike: w ← (1 − lr·strength)·w before the update."""

    strength = regplug.Scheduled()

    def __init__(self, strength=0.1, *, where="weights", name=None):
        self.strength, self.where, self.name = strength, where, name

    @hookimpl
    def on_attach(self, session):
        session.coverage(self._selection)

    def rate(self, session, index):
        return session.learning_rate(index)

    @hookimpl
    def before_step(self, session):
        for index, ws, _ in self.by_part(session):
            for w in ws:
                local(w).mul_(1 - self.rate(session, index) * self.strength)


# --- draws ------------------------------------------------------------------------------------


class NoiseOfTheUsers(regplug.Selective):
    """streams: adds noise to gradients that it draws from torch's stream, between two batches."""

    stochastic = True
    strength = regplug.Scheduled()

    def __init__(self, strength=0.1, *, where="weights", name=None):
        self.strength, self.where, self.name = strength, where, name

    @hookimpl
    def on_attach(self, session):
        session.coverage(self._selection)

    @hookimpl
    def on_gradients(self, session):
        for _, _, gradients in self.by_part(session):
            for g in gradients if self.strength else ():
                local(g).add_(torch.randn_like(local(g)), alpha=self.strength)


class SeedsAtLoad(Decay):
    """state: seeds torch's stream where a checkpoint is loaded."""

    @hookimpl
    def on_state(self, session):
        return {"seed": 3}

    @hookimpl
    def on_load_state(self, session, state):
        torch.manual_seed(state.get("seed", 3))


class RefusesToLoad(Decay):
    """state: its state has no entry that it asks for."""

    @hookimpl
    def on_state(self, session):
        return {"step": session.steps}

    @hookimpl
    def on_load_state(self, session, state):
        self._last = state["steps"]


class DropsAlways(Plugin):
    """interludes: drops inputs in evaluation as well."""

    stochastic = True
    shapes_loss = True

    @hookimpl
    def on_attach(self, session):
        self._handle = session.model.register_forward_pre_hook(
            lambda module, inputs: (F.dropout(inputs[0], 0.2), *inputs[1:])
        )

    @hookimpl
    def on_detach(self, session):
        self._handle.remove()


# --- loops ------------------------------------------------------------------------------------


class RateOrUsual(Decay):
    """learning-rate: takes a rate of 0 for none, and its own usual one instead."""

    def rate(self, session, index):
        return session.learning_rate(index) or 1e-3


class RateByIdentity(Decay):
    """learning-rate: keeps its factor while the rate is the same object, as a tensor always is."""

    @hookimpl
    def on_attach(self, session):
        super().on_attach(session)
        self._known = {}

    def rate(self, session, index):
        rate = session.learning_rate(index)
        if index not in self._known or self._known[index][0] is not rate:
            self._known[index] = rate, float(rate)
        return self._known[index][1]


class CountsEvaluations(regplug.Selective):
    """closure: counts for its own schedule how often gradients were there."""

    strength = regplug.Scheduled()

    def __init__(self, strength=0.1, *, where="weights", name=None):
        self.strength, self.where, self.name, self.times = strength, where, name, 0

    @hookimpl
    def on_attach(self, session):
        session.coverage(self._selection)

    @hookimpl
    def on_gradients(self, session):
        self.times += 1
        for index, ws, gradients in self.by_part(session):
            sign = -1 if session.groups[index].get("maximize") else 1
            for w, g in zip(ws, gradients, strict=True):
                local(g).add_(local(w.detach()), alpha=sign * self.strength / self.times)

    @hookimpl
    def on_state(self, session):
        return {"times": self.times}

    @hookimpl
    def on_load_state(self, session, state):
        self.times = state.get("times", 0)


class ClearsGradients(Decay):
    """untouched: takes the gradients away after the step, to save their memory."""

    @hookimpl
    def after_step(self, session):
        for _, ws, _ in session.updates(regplug.Selection("all")):
            for w in ws:
                w.grad = None


class CopyIsItself(Decay):
    """copies: a copy of it is itself."""

    def __deepcopy__(self, memo):
        return self


class MeanOfNothing(Penalty):
    """metrics: divides by the number of steps, which is 0 before the first."""

    separable = True

    def value(self, w):
        return w.square().sum()

    @hookimpl
    def on_metrics(self, session):
        return {"share": session.steps / session.steps}


class MetricOfBackward(Penalty):
    """metrics: finds its gradient by a backward pass, which adds to those of the loop."""

    separable = True

    def value(self, w):
        return w.square().sum()

    @hookimpl
    def on_metrics(self, session):
        for entry in session.coverage(self._selection):
            if entry.parameter.grad is not None:
                local(entry.parameter.grad).add_(local(entry.parameter.detach()))
        return {"strength": self.strength}


# --- time and memory --------------------------------------------------------------------------


class PairsOfTensors(Decay):
    """cost: looks for each weight's place among all of them."""

    @hookimpl
    def before_step(self, session):
        everything = list(session.model.parameters())
        for index, ws, _ in self.by_part(session):
            for w in ws:
                place = 0
                for number, other in enumerate(everything):
                    if other is w:
                        place = number
                rate = self.rate(session, index) * self.strength
                local(w).mul_(1 - rate / (1 + place % 2))


class ByElement(Penalty):
    """cost: adds up element by element, in Python."""

    def value(self, w):
        total = w.new_zeros(())
        for x in w.flatten():
            total = total + x * x
        return total


class Sleeps(Decay):
    """cost: gives others the time to write, in each step."""

    @hookimpl
    def after_step(self, session):
        import time

        time.sleep(0.001)


class KeepsTensorOfSteps(Decay):
    """growth: a tensor with a number for each step."""

    @hookimpl
    def on_attach(self, session):
        super().on_attach(session)
        self._seen = torch.zeros(0, dtype=torch.uint8)

    @hookimpl
    def after_step(self, session):
        self._seen = torch.cat([self._seen, self._seen.new_ones(1)])


# --- the process ------------------------------------------------------------------------------


class LeavesThread(Decay):
    """surroundings: a thread that nobody ends waits for what it is given."""

    @hookimpl
    def on_attach(self, session):
        super().on_attach(session)
        threading.Thread(target=threading.Event().wait, args=(20.0,), daemon=True).start()


class LeavesAlarm(Decay):
    """surroundings: sets an alarm in each step, in case that the next does not come."""

    @hookimpl
    def before_step(self, session):
        import signal

        super().before_step(session)
        signal.alarm(600)


class LeavesProcess(Decay):
    """surroundings: starts a process that goes on after detach()."""

    @hookimpl
    def on_attach(self, session):
        super().on_attach(session)
        os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "20")


class EndsWhereNoNumber(Decay):
    """runs: ends the program where the loss is no number."""

    @hookimpl
    def on_loss(self, session, loss):
        if not loss.isfinite():
            raise SystemExit(1)


class TakesGroupAway(Decay):
    """collective: destroys the process group of the user, once detached."""

    @hookimpl
    def on_detach(self, session):
        if dist.is_initialized():
            dist.destroy_process_group()


class ForgottenHalves(Strong):
    """autocast: adds up products of its hook in single precision, which halves do not go into."""

    def waits_for_loss(self, session):
        return True

    @hookimpl
    def on_attach(self, session):
        self._outs = []
        self._handle = session.model.register_forward_hook(self._take)

    def _take(self, module, inputs, output):
        if module.training and torch.is_grad_enabled():
            self._outs.append(output)

    @hookimpl
    def on_loss(self, session, loss):
        outs, self._outs = self._outs, []
        if not outs:
            return None
        dtype = next(session.model.parameters()).dtype
        sums = torch.zeros(outs[-1].shape[1], dtype=dtype, device=loss.device)
        index = torch.arange(len(sums), device=loss.device)
        sums = sums.index_add(0, index, outs[-1].square().mean(0))
        sign = -1 if any(group.get("maximize") for group in session.groups) else 1
        return sign * self.strength * sums.sum()

    @hookimpl
    def on_detach(self, session):
        self._handle.remove()
        self._outs = []
