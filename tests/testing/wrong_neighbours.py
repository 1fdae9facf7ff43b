"""Plugins that are wrong on purpose in what they leave behind in the process."""

import functools
import logging
import os
import signal
import sys
import warnings

import torch
import torch.nn.functional as F
from torch import nn

import regplug
from regplug import hookimpl
from tests.testing.wrong_remains import Shrinks


class GlobalHook(Shrinks):
    """Hooks all modules that there are."""

    @hookimpl
    def on_attach(self, session):
        nn.modules.module.register_module_forward_hook(_watch)


def _watch(module, inputs, output):
    return None


class GlobalStepHook(Shrinks):
    """Hooks all optimizers that there are, each time that it steps for the first time."""

    hooked = False

    @hookimpl
    def after_step(self, session):
        if not self.hooked:
            self.hooked = True
            from torch.optim.optimizer import register_optimizer_step_post_hook

            register_optimizer_step_post_hook(lambda optimizer, args, kwargs: None)


class PatchesFunctional(Shrinks):
    """Wraps ``F.layer_norm``, once for the process, and says it is the same."""

    @hookimpl
    def on_attach(self, session):
        if not hasattr(F.layer_norm, "__wrapped__"):
            plain = F.layer_norm

            @functools.wraps(plain)
            def layer_norm(*args, **kwargs):
                return plain(*args, **kwargs)

            F.layer_norm = layer_norm


class PatchesClass(Shrinks):
    """Wraps ``step`` of the optimizer's class, and gives it back to the instance alone."""

    @hookimpl
    def on_attach(self, session):
        self._class, self._plain = type(session.optimizer), type(session.optimizer).zero_grad
        plain = self._plain
        self._class.zero_grad = lambda optimizer, set_to_none=True: plain(optimizer, set_to_none)

    @hookimpl
    def on_detach(self, session):
        pass


class MarksClass(Shrinks):
    """Notes on the class of a module that it was there."""

    @hookimpl
    def on_attach(self, session):
        nn.LayerNorm.regularized = True


class PatchesRegplug(Shrinks):
    """Replaces a method of all sessions."""

    @hookimpl
    def on_attach(self, session):
        plain = type(session).describe
        type(session).describe = lambda self: plain(self)  # noqa: PLW0108 - another function


class SwapsFunctions(Shrinks):
    """Puts one function of torch's own in the place of another."""

    @hookimpl
    def on_attach(self, session):
        F.silu = F.mish


class DefaultDtype(Shrinks):
    """Computes in float64, and leaves that as the default."""

    @hookimpl
    def on_attach(self, session):
        torch.set_default_dtype(torch.float64)

    @hookimpl
    def on_detach(self, session):
        torch.set_default_dtype(torch.float32)  # not what it was


class Deterministic(Shrinks):
    """Asks for determinism in its first step, and no one takes that back."""

    @hookimpl
    def before_step(self, session):
        torch.use_deterministic_algorithms(True, warn_only=True)
        super().before_step(session)


class Silences(Shrinks):
    """Turns warnings off."""

    @hookimpl
    def on_attach(self, session):
        warnings.filterwarnings("ignore", category=UserWarning)


class Environment(Shrinks):
    """Tells its kernels by an environment variable."""

    @hookimpl
    def on_attach(self, session):
        os.environ.setdefault("SHRINKS_MODE", "fast")


class Logs(Shrinks):
    """Adds a handler to the root logger in a step."""

    @hookimpl
    def after_step(self, session):
        logger = logging.getLogger()
        if not any(type(h) is logging.NullHandler for h in logger.handlers):
            logger.addHandler(logging.NullHandler())


class Signals(Shrinks):
    """Wants to know of Ctrl-C."""

    @hookimpl
    def on_attach(self, session):
        signal.signal(signal.SIGUSR1, _handler)


def _handler(number, frame):
    pass


class FewThreads(Shrinks):
    """Asks for one thread while it attaches."""

    @hookimpl
    def on_attach(self, session):
        torch.set_num_threads(1)


class Hides(Shrinks):
    """Puts a module of its own in another's place."""

    @hookimpl
    def on_attach(self, session):
        import types

        sys.modules["colorsys"] = types.ModuleType("colorsys")


# --- right ones that look alike ------------------------------------------------------------------


class PutsBack(Shrinks):
    """Right: default dtype, filters, a global hook and a patched function, all for a time only."""

    _undo = ()

    @hookimpl
    def on_attach(self, session):
        self._undo = []
        self._undo.append(nn.modules.module.register_module_forward_hook(_watch).remove)
        plain = F.layer_norm
        self._undo.append(lambda: setattr(F, "layer_norm", plain))
        F.layer_norm = lambda *args, **kwargs: plain(*args, **kwargs)  # noqa: PLW0108 - another function

    @hookimpl
    def before_step(self, session):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
                warnings.simplefilter("ignore")
                super().before_step(session)
        finally:
            torch.set_default_dtype(before)

    @hookimpl
    def on_detach(self, session):
        while self._undo:
            self._undo.pop()()


class ImportsLate(Shrinks):
    """Right: a module that is imported only when it is needed stays imported."""

    @hookimpl
    def on_attach(self, session):
        import colorsys  # noqa: F401

        assert regplug.__name__
