"""Plugins that leave something otherwise: at detach, within a step, in the process."""

import torch

from regplug import Plugin, Scheduled, Selective, hookimpl, local
from tests.testing.wrong_held import Decays

# --- hooks ------------------------------------------------------------------------------------


class Unmarked(Decays):
    """runs: has a hook that is not marked as one."""

    def before_step(self, session):
        self.decay(session, self.rate)


class GradientModeStaysOn(Decays):
    """modes: the next plugin's hook is called with gradients on."""

    @hookimpl
    def before_step(self, session):
        torch.set_grad_enabled(True)
        for index, ws, _ in session.updates(self._selection):
            for w in ws:
                local(w).data.mul_(1 - session.learning_rate(index) * self.rate)


class DetachesTheLoss(Plugin):
    """loss-event: takes the caller's loss off its graph to look at it."""

    strength = Scheduled()

    def __init__(self, strength=0.01, name=None):
        self.strength, self.name = strength, name

    @hookimpl
    def on_loss(self, session, loss):
        share = self.strength / (1 + abs(float(loss.detach_())))
        ws = [p for g in session.groups for p in g["params"] if p.requires_grad]
        return share * torch.stack([w.float().square().sum() for w in ws]).sum()


# --- the loop at detach -----------------------------------------------------------------------


class OtherMemory(Decays):
    """restore: puts a new tensor into ``.data``."""

    @hookimpl
    def before_step(self, session):
        for index, ws, _ in session.updates(self._selection):
            for w in ws:
                w.data = w.data * (1 - session.learning_rate(index) * self.rate)


class OptimizersMemory(Selective):
    """restore: keeps where weights began in the optimizer's own state."""

    rate = Scheduled()
    order_matters = True

    def __init__(self, rate=0.1, *, where="weights", name=None):
        self.rate, self.where, self.name = rate, where, name

    @hookimpl
    def before_step(self, session):
        for index, ws, _ in session.updates(self._selection):
            share = float(session.learning_rate(index)) * self.rate
            for w in ws:
                state = session.optimizer.state[w]
                if "start" not in state:
                    state["start"] = w.detach().clone()
                w.lerp_(state["start"], share)


class ChangesDefaults(Decays):
    """restore: changes what the optimizer gives to groups that come later."""

    @hookimpl
    def on_attach(self, session):
        if session.optimizer is not None:
            session.optimizer.defaults["weight_decay"] = 0.123

    @hookimpl
    def before_step(self, session):
        self.decay(session, self.rate)


class ClearsGradients(Decays):
    """restore: clears the loop's gradients at detach."""

    @hookimpl
    def before_step(self, session):
        self.decay(session, self.rate)

    @hookimpl
    def on_detach(self, session):
        for p in session.model.parameters():
            p.grad = None


class MakesGradients(Decays):
    """restore: makes gradients of zeros at attach."""

    @hookimpl
    def on_attach(self, session):
        for p in session.model.parameters():
            if p.grad is None:
                p.grad = torch.zeros_like(p)

    @hookimpl
    def before_step(self, session):
        self.decay(session, self.rate)


class WeightsOfAttach(Decays):
    """restore: puts the weights back to what they were at attach, too."""

    kept = ()

    @hookimpl
    def on_attach(self, session):
        self.kept = [(p, p.detach().clone()) for p in session.model.parameters()]

    @hookimpl
    def before_step(self, session):
        self.decay(session, self.rate)

    @hookimpl
    def on_detach(self, session):
        with torch.no_grad():
            for p, old in self.kept:
                p.copy_(old)
        self.kept = ()


# --- the process ------------------------------------------------------------------------------


class GradientsOff(Decays):
    """surroundings: turns gradient mode off at attach, for good."""

    @hookimpl
    def on_attach(self, session):
        torch.set_grad_enabled(False)

    @hookimpl
    def before_step(self, session):
        self.decay(session, self.rate)


class SavesInHalf(Decays):
    """surroundings: hooks on all that autograd saves."""

    @hookimpl
    def on_attach(self, session):
        torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t).__enter__()

    @hookimpl
    def before_step(self, session):
        self.decay(session, self.rate)


class OneThread(Decays):
    """surroundings: takes autograd's threads away."""

    @hookimpl
    def on_attach(self, session):
        torch.autograd.set_multithreading_enabled(False)

    @hookimpl
    def before_step(self, session):
        self.decay(session, self.rate)


class NoFlash(Decays):
    """surroundings: turns flash attention off."""

    @hookimpl
    def on_attach(self, session):
        torch.backends.cuda.enable_flash_sdp(False)

    @hookimpl
    def before_step(self, session):
        self.decay(session, self.rate)


class PatchesCheckpoint(Decays):
    """surroundings: puts a function of its own in place of torch's checkpointing."""

    @hookimpl
    def on_attach(self, session):
        room = torch.utils.checkpoint
        whole = room.checkpoint
        room.checkpoint = lambda *args, **kwargs: whole(*args, **{"use_reentrant": False, **kwargs})

    @hookimpl
    def before_step(self, session):
        self.decay(session, self.rate)
