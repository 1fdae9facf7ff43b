"""Plugins that are wrong on purpose in how they draw at random."""

import random
import time

import numpy
import torch
from torch import nn

from regplug import hookimpl, local, part
from tests.testing.wrong_formulas import Strong, weights
from tests.testing.wrong_remains import Shrinks


class SeedsAtAttach(Shrinks):
    """Seeds torch for the sake of reproducibility."""

    @hookimpl
    def on_attach(self, session):
        torch.manual_seed(0)


class SeedsEachStep(Shrinks):
    """Seeds torch by the step, and Python's random too."""

    @hookimpl
    def after_step(self, session):
        random.seed(session.steps)


class DrawsUnasked(Shrinks):
    """Draws a number from torch's stream that it does not even use."""

    @hookimpl
    def before_step(self, session):
        torch.rand(1)
        super().before_step(session)


class Noisy(Strong):
    """Adds what ``noise`` gives to the gradient of each weight."""

    stochastic = True

    @hookimpl
    def on_gradients(self, session):
        if self.strength:
            for w in weights(session):
                noise = self.noise(session, w)
                own = part(noise, w) if type(noise) is torch.Tensor else local(noise)
                local(w.grad).add_(own, alpha=self.strength)


class DrawsWhenOff(Noisy):
    """Draws from torch's stream, as it says, but also where it is turned off."""

    shapes_loss = True

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad.add_(torch.randn_like(w), alpha=self.strength)


class DrawsFromNumpy(Noisy):
    """Takes its noise from numpy's global stream, which shuffles the user's data."""

    def noise(self, session, w):
        return torch.from_numpy(numpy.random.randn(*w.shape)).to(w)


class DrawsInMetrics(Shrinks):
    """Estimates a metric by sampling."""

    @hookimpl
    def on_metrics(self, session):
        return {"estimate": float(torch.randn(100).mean() * 0)}


class RestoresOldState(Shrinks):
    """Puts torch's random state of the time of attach back after each step."""

    @hookimpl
    def on_attach(self, session):
        self._state = torch.get_rng_state()

    @hookimpl
    def after_step(self, session):
        torch.set_rng_state(self._state)


class FreezesMasks(Shrinks):
    """Makes each dropout module draw from a fork that begins anew in each pass."""

    @hookimpl
    def on_attach(self, session):
        self._handles = []
        for module in session.model.modules():
            if isinstance(module, nn.Dropout):
                self._handles.append(module.register_forward_hook(self._again))

    def _again(self, module, inputs, output):
        if not module.training:
            return None
        generator = torch.Generator().manual_seed(1)
        kept = torch.rand(output.shape, generator=generator, dtype=output.dtype) >= module.p
        return inputs[0] * kept / (1 - module.p)

    @hookimpl
    def on_detach(self, session):
        for handle in self._handles:
            handle.remove()


class SeedsByTime(Noisy):
    """Has a generator of its own, with a seed of the clock."""

    @hookimpl
    def on_attach(self, session):
        self._seed = time.perf_counter_ns()

    def noise(self, session, w):
        self._seed += 1
        generator = torch.Generator(w.device).manual_seed(self._seed)
        return torch.randn(w.shape, dtype=w.dtype, device=w.device, generator=generator)


class SharesGenerator(Noisy):
    """All instances draw from one generator, of the class."""

    generator = torch.Generator().manual_seed(5)

    def noise(self, session, w):
        return torch.randn(w.shape, dtype=w.dtype, generator=self.generator)


class SameEachStep(Noisy):
    """Seeds its own generator anew in each step."""

    def noise(self, session, w):
        generator = torch.Generator(w.device).manual_seed(w.numel())
        return torch.randn(w.shape, dtype=w.dtype, device=w.device, generator=generator)


class SameForAll(Noisy):
    """Seeds its own generator by the step: each weight gets the same numbers."""

    def noise(self, session, w):
        generator = torch.Generator(w.device).manual_seed(session.steps)
        return torch.randn(w.shape, dtype=w.dtype, device=w.device, generator=generator)


# --- right ones that look alike ------------------------------------------------------------------


class OwnGenerator(Noisy):
    """Right: a generator of its own, seeded once by a number of the user's."""

    def __init__(self, strength=0.01, seed=0, name=None):
        super().__init__(strength, name)
        self.seed = seed

    @hookimpl
    def on_attach(self, session):
        self._generators = {}

    def noise(self, session, w):
        if w.device not in self._generators:
            self._generators[w.device] = torch.Generator(w.device).manual_seed(self.seed)
        generator = self._generators[w.device]
        return torch.randn(w.shape, dtype=w.dtype, device=w.device, generator=generator)


class UsersStream(Noisy):
    """Says that it draws at random, and draws from torch's stream between two batches."""

    def noise(self, session, w):
        return torch.randn_like(w)


class Forks(Shrinks):
    """Right: seeds torch for itself alone."""

    @hookimpl
    def before_step(self, session):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            super().before_step(session)
