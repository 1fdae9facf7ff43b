"""Plugins that are wrong on purpose in one loop: at batches, and at what is no real step."""

import torch

import regplug
from regplug import hookimpl
from tests.testing.wrong_formulas import L1, Strong, weights


class StoredGenerator(Strong):
    """every-batch: keeps ``parameters()``, which can be gone through once."""

    @hookimpl
    def on_attach(self, session):
        self._parameters = (p for g in session.groups for p in g["params"])

    @hookimpl
    def on_gradients(self, session):
        for p in self._parameters:
            if p.grad is not None:
                p.grad.add_(p.detach().sign(), alpha=self.signed(session))


class NeverOff(Strong):
    """zero-strength: a floor under its strength."""

    @hookimpl
    def before_step(self, session):
        for w in weights(session):
            w.mul_(1 - max(self.strength, 1e-6))


class Everything(Strong):
    """untouched: goes through all parameters of the model."""

    @hookimpl
    def after_step(self, session):
        for p in session.model.parameters():
            p.mul_(1 - self.strength)


class Assigns(Strong):
    """adds: puts a new tensor into ``.grad``."""

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad = w.grad + self.signed(session) * w.detach().sign()


class WaitsForInputGradient(Strong):
    """input-grad: acts on modules through whose input a gradient flows."""

    @hookimpl
    def on_attach(self, session):
        self._seen = set()
        self._hooks = [
            module.register_forward_pre_hook(self._look)
            for module in session.model.modules()
            if isinstance(module, torch.nn.Linear)
        ]

    def _look(self, module, inputs):
        if inputs[0].requires_grad:
            self._seen.add(module)

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            if any(w is module.weight for module in self._seen):
                w.grad.add_(w.detach().sign(), alpha=self.signed(session))
        self._seen.clear()

    @hookimpl
    def on_detach(self, session):
        for hook in self._hooks:
            hook.remove()


class SoftensGradients(Strong):
    """order: shrinks what the plugins before it have added, and does not say that order matters."""

    order_matters = False

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad.div_(1 + self.strength * w.grad.abs())


class PerPass(Strong):
    """accumulation: acts once for each backward pass."""

    passes = 1

    @hookimpl
    def on_loss(self, session, loss):
        fresh = all(p.grad is None for p in session.model.parameters())
        self.passes = 1 if fresh else self.passes + 1

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad.add_(w.detach().sign(), alpha=self.signed(session) * self.passes)


class AlwaysInLoss(L1):
    """clipping: is in the loss, whatever delivery it was told."""

    @hookimpl
    def on_loss(self, session):
        self._settled = "loss"
        return super().on_loss(session)

    @hookimpl
    def on_gradients(self, session):
        pass

    def waits_for_loss(self, session):
        return True


class ForgetsScale(Strong):
    """overflow: says that it scales what it adds, and does not."""

    scaled_gradients = True

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad.add_(w.detach().sign(), alpha=self.signed(session))


class OwnStepHook(Strong):
    """checkpoint-step: hooks the optimizer itself, which also makes steps that are none."""

    @hookimpl
    def on_attach(self, session):
        if session.optimizer is None:
            raise regplug.errors.UnsupportedError(f"{self.name} hooks the optimizer: pass one")
        self._hook = session.optimizer.register_step_pre_hook(self._before)

    def _before(self, optimizer, args, kwargs):
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and found_inf.item():
            return
        with torch.no_grad():
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.mul_(1 - self.strength)

    _hook = None

    @hookimpl
    def on_detach(self, session):
        if self._hook is not None:
            self._hook.remove()


class Overwrites(Strong):
    """The gradient of the data is lost."""

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad.copy_(w.detach().sign() * self.strength)


class HalfSum(Strong):
    """Adds up in the dtype of the weights, and mixes sharded weights with a plain loss."""

    @hookimpl
    def on_loss(self, session, loss):
        return self.signed(session) * sum(
            e.parameter.abs().sum()
            for e in session.coverage(regplug.Selection("weights")).trainable
        )
