"""Plugins that stumble where they had better refuse, or that refuse where it is of no use."""

import torch.distributed as dist

from regplug import hookimpl
from regplug.errors import UnsupportedError
from tests.testing.wrong_formulas import Strong, weights


class NeedsOptimizer(Strong):
    """no-optimizer: asks the optimizer at attach, and stumbles where there is none."""

    @hookimpl
    def on_attach(self, session):
        self._groups = len(session.optimizer.param_groups)

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad.add_(w.detach().sign(), alpha=self.signed(session))


class StumblesOverMaximize(Strong):
    """maximize: asserts that it is off, so that users learn of it by an AssertionError."""

    @hookimpl
    def on_attach(self, session):
        assert not any(group.get("maximize") for group in session.groups)

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad.add_(w.detach().sign(), alpha=self.strength)


class RefusesOnOne(Strong):
    """collective: refuses groups of ranks, but on one of them alone."""

    @hookimpl
    def on_attach(self, session):
        if dist.is_initialized() and dist.get_rank() == 1:
            raise UnsupportedError("one process only")

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad.add_(w.detach().sign(), alpha=self.signed(session))
