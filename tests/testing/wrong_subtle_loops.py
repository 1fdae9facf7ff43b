"""Plugins that are wrong in one place only, as is easily done: events, loops, what stays behind."""

import os
import random
import signal

import torch
import torch.distributed as dist
from torch import nn

import regplug
from regplug import Plugin, hookimpl
from tests.testing.wrong_formulas import L1, Strong, weights
from tests.testing.wrong_runs import Acts
from tests.testing.wrong_terms import size

# --- the loss event ---------------------------------------------------------------------------


class TermOnce(Strong):
    """loss-event: computes its term once for each step, and returns it detached after that."""

    @hookimpl
    def on_attach(self, session):
        self._at, self._term = -1, None

    @hookimpl
    def on_loss(self, session):
        if self._at != session.steps:
            self._at, self._term = session.steps, self.strength * size(session)
            return self._term
        return self._term.detach()


class ChangesLossData(Strong):
    """loss-event: adds its value to the caller's loss, behind autograd's back."""

    @hookimpl
    def on_loss(self, session, loss):
        term = self.strength * size(session)
        loss.data.add_(term.detach())
        return term - term.detach()


class LargerLoss(Strong):
    """loss-event: returns what the loss is to be, and not what is to be added to it."""

    @hookimpl
    def on_loss(self, session, loss):
        return loss * (1 + self.strength)


class DividesByBatches(Strong):
    """loss-event: divides its term by the number of passes that it has seen in this step."""

    @hookimpl
    def on_attach(self, session):
        self._at, self._seen = -1, 0

    @hookimpl
    def on_loss(self, session):
        self._seen = self._seen + 1 if self._at == session.steps else 1
        self._at = session.steps
        return self.strength * size(session) / self._seen


# --- it never acts ----------------------------------------------------------------------------


class ActsOnCopies(Acts):
    """acts: shrinks what ``float()`` returns, which is the weight itself in float32 alone."""

    def act(self, session):
        for w in weights(session):
            w.grad.float().add_(w.detach().float().sign(), alpha=self.signed(session))


class OnlyWithAdam(Acts):
    """acts: waits for another optimizer, in silence."""

    def act(self, session):
        if isinstance(session.optimizer, torch.optim.Adam):
            super().act(session)


class AfterAHundred(Acts):
    """acts: warms up for a hundred steps, by a count of its own."""

    def act(self, session):
        if session.steps >= 100:
            super().act(session)


# --- restore ----------------------------------------------------------------------------------


class KeepsForward(Acts):
    """restore: wraps ``forward`` of the model, and leaves an attribute when it unwraps it."""

    @hookimpl
    def on_attach(self, session):
        self._model, self._forward = session.model, session.model.forward
        session.model.forward = lambda x: self._forward(x)  # noqa: PLW0108

    @hookimpl
    def on_detach(self, session):
        self._model.forward = self._forward


class LeavesGradientHook(Acts):
    """restore: forgets one of its hooks on gradients."""

    @hookimpl
    def on_attach(self, session):
        found = [p for p in session.model.parameters() if p.requires_grad]
        self._handles = [p.register_hook(lambda g: g) for p in found]

    @hookimpl
    def on_detach(self, session):
        for handle in self._handles[1:]:
            handle.remove()


class ClearsHooks(Acts):
    """restore: takes its forward hooks away with everybody else's."""

    @hookimpl
    def on_attach(self, session):
        self._layers = [m for m in session.model.modules() if isinstance(m, nn.Linear)]
        for layer in self._layers:
            layer.register_forward_hook(lambda *args: None)

    @hookimpl
    def on_detach(self, session):
        for layer in self._layers:
            layer._forward_hooks.clear()


class BenchmarkOff(Acts):
    """surroundings: turns a flag of torch on, and then off, whatever it was."""

    @hookimpl
    def on_attach(self, session):
        torch.backends.cudnn.benchmark = False

    @hookimpl
    def on_detach(self, session):
        torch.backends.cudnn.benchmark = True


class MarksParameters(Acts):
    """restore: leaves a mark on each weight that it has acted on."""

    def act(self, session):
        super().act(session)
        for w in weights(session):
            w.is_regularized = True


# --- randomness -------------------------------------------------------------------------------


class Noise(Strong):
    """Adds noise from a generator of its own; subclasses seed it wrongly."""

    stochastic = True

    def generator(self, session, index):
        raise NotImplementedError

    @hookimpl
    def on_gradients(self, session):
        for index, w in enumerate(weights(session)):
            generator = self.generator(session, index)
            noise = torch.randn(w.shape, generator=generator, dtype=torch.float64, device="cpu")
            own = regplug.part(noise.to(w.device, w.dtype), w)
            regplug.local(w.grad).add_(own, alpha=self.strength)


class SeedsByIndex(Noise):
    """fresh-draws: seeds a generator by the number of the weight, the same in each step."""

    def generator(self, session, index):
        return torch.Generator().manual_seed(index)


class PythonsRandom(Noise):
    """streams: takes its seeds from Python's global stream."""

    def generator(self, session, index):
        return torch.Generator().manual_seed(random.randrange(2**31))


class ByAddress(Noise):
    """reproducible: seeds by where things are in memory."""

    def generator(self, session, index):
        return torch.Generator().manual_seed(
            id(object()) % 2**31 + id(session) % 10**6 + index + session.steps
        )


# --- loops ------------------------------------------------------------------------------------


class OncePerStep(Acts):
    """closure: acts on the first of several evaluations in a step."""

    @hookimpl
    def on_attach(self, session):
        self._at = -1

    def act(self, session):
        if self._at != session.steps:
            self._at = session.steps
            super().act(session)


class RoundsRate(Strong):
    """learning-rate: rounds the rate, of which a small one is nothing."""

    reads_gradients = False

    @hookimpl
    def before_step(self, session):
        selection = regplug.Selection("weights")
        for index, ws, _ in session.updates(selection):
            lr = session.learning_rate(index)
            for w in ws:
                w.mul_(1 - round(float(lr), 2) * self.strength)


class SecondGroupOnly(Acts):
    """groups: takes the sign from the first group, the weights from the last."""

    def act(self, session):
        for p in session.groups[-1]["params"]:
            if p.ndim > 1 and p.grad is not None:
                p.grad.add_(p.detach().sign(), alpha=self.signed(session))


class DescribesTooEarly(Acts):
    """describe: says what it saw in the last step, of which there may be none."""

    def act(self, session):
        super().act(session)
        self.last = session.steps

    def notes(self, session):
        return [f"acted last in step {self.last}"]


class AsksTwice(Acts):
    """metrics: counts how often it was asked."""

    asked = 0.0

    @hookimpl
    def on_metrics(self, session):
        self.asked += 1.0
        return {"strength": self.strength, "asked": self.asked}


class ParamGroups(Acts):
    """no-optimizer: goes through the optimizer, of which there may be none."""

    def act(self, session):
        if session.optimizer is None:
            return
        super().act(session)


# --- time and memory --------------------------------------------------------------------------


class CopiesAll(Acts):
    """memory: copies all weights to see which have changed."""

    def act(self, session):
        before = {w: w.detach().clone() for w in weights(session)}
        for w, copy in before.items():
            w.grad.add_(copy.sign(), alpha=self.signed(session))


class HooksEachStep(Acts):
    """growth: registers a hook in each step, and removes the last one at the end."""

    @hookimpl
    def on_attach(self, session):
        self._handles = []

    def act(self, session):
        super().act(session)
        self._handles.append(session.model.register_forward_pre_hook(lambda *args: None))

    @hookimpl
    def on_detach(self, session):
        for handle in self._handles:
            handle.remove()


class NeverConverges(L1):
    """runs: iterates until nothing changes any more, which never is."""

    def value(self, w):
        x = torch.ones((), dtype=w.dtype, device=w.device)
        while float(x) != 0.5:
            x = -x
        return w.abs().sum() * x


class GrowsByStep(Acts):
    """growth: goes through a history that is longer in each step."""

    @hookimpl
    def on_attach(self, session):
        self._history = []

    def act(self, session):
        super().act(session)
        self._history.extend([session.steps] * 50)
        self.total = sum(step * 2 for step in self._history)


# --- it ends the process, or waits ------------------------------------------------------------


class Terminates(Acts):
    """runs: sends a signal to its own process."""

    def act(self, session):
        if session.steps == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        super().act(session)


class InterruptsItself(Acts):
    """runs: raises what only the keyboard should."""

    def act(self, session):
        raise KeyboardInterrupt


class ReducesWhereThereIsSome(Acts):
    """collective: sums over the ranks, those that have something to sum alone."""

    def act(self, session):
        super().act(session)
        if dist.is_initialized() and dist.get_rank() == 1:
            dist.all_reduce(torch.ones(()))


class ExitsInMetricsOfRank1(Plugin):
    """collective: the second rank leaves when it is asked for metrics."""

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad.mul_(0.9)

    @hookimpl
    def on_metrics(self, session):
        if dist.is_initialized() and dist.get_rank() == 1:
            os._exit(0)
        return {"one": 1.0}

    order_matters = True
