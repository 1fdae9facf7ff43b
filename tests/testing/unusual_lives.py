"""Right plugins of unusual kinds: with hooks, states, noise, parametrizations, graphs of graphs."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrize

import regplug
from regplug import Plugin, hookimpl
from regplug.errors import UnsupportedError
from tests.testing.wrong_formulas import Strong, weights


class ActivityPenalty(Strong):
    """Penalizes what tanh layers put out, by forward hooks."""

    _handles = ()

    def waits_for_loss(self, session):
        return True

    @hookimpl
    def on_attach(self, session):
        self._handles, self._outputs = [], []
        for module in session.model.modules():
            if isinstance(module, nn.Tanh | nn.Linear):
                self._handles.append(module.register_forward_hook(self._keep))

    def _keep(self, module, inputs, output):
        if module.training and torch.is_grad_enabled():
            self._outputs.append(output)

    @hookimpl
    def on_loss(self, session):
        outputs, self._outputs = self._outputs, []
        if not outputs or not torch.is_grad_enabled():
            return None
        sign = -1 if any(group.get("maximize") for group in session.groups) else 1
        terms = [
            a.float().square().mean() if a.dtype.itemsize < 4 else a.square().mean()
            for a in outputs
        ]
        return sign * self.strength * torch.stack(terms).sum()

    @hookimpl
    def on_gradients(self, session):
        self._outputs = []

    @hookimpl
    def on_detach(self, session):
        for handle in self._handles:
            handle.remove()
        self._handles, self._outputs = (), []


class MovingAnchor(Strong):
    """Pulls each weight towards its moving average, which goes into the state, by name."""

    @hookimpl
    def on_attach(self, session):
        self._averages = {}

    @hookimpl
    def before_step(self, session):
        for entry in session.coverage(regplug.Selection("weights")).trainable:
            w = entry.parameter
            if w.grad is None:
                continue
            part = regplug.local(w)
            average = self._averages.setdefault(entry.name, 0.5 * part.clone())
            part.lerp_(average, self.strength)
            average.lerp_(part, 0.1)

    @hookimpl
    def on_state(self, session):
        return {"averages": {name: a.clone() for name, a in self._averages.items()}}

    @hookimpl
    def on_load_state(self, session, state):
        self._averages = {name: a.clone() for name, a in state.get("averages", {}).items()}


class WeightNoise(Strong):
    """Shakes the weights before the update, by a generator for each weight and step."""

    stochastic = True
    order_matters = True

    @hookimpl
    def before_step(self, session):
        if not self.strength:
            return
        covered = session.coverage(regplug.Selection("weights")).trainable
        for number, entry in enumerate(covered):
            w = entry.parameter
            if w.grad is None:
                continue
            generator = torch.Generator(w.device).manual_seed(1000 * session.steps + number)
            noise = torch.randn(w.shape, generator=generator, dtype=w.dtype, device=w.device)
            regplug.local(w).add_(regplug.part(noise, w), alpha=self.strength)


class Damped(nn.Module):
    """A weight times a number."""

    def forward(self, w):
        return w * 0.9


class Parametrizes(Plugin):
    """Parametrizes one layer while it is attached, and leaves the weight that it came to."""

    shapes_loss = True
    _layer = None

    @hookimpl
    def on_attach(self, session):
        if dist.is_initialized():
            raise UnsupportedError("parametrize the model yourself, before it is wrapped")
        layers = [m for m in session.model.modules() if isinstance(m, nn.Linear)]
        for layer in layers[-1:]:
            if layer.bias is not None:
                self._layer = layer
                parametrize.register_parametrization(layer, "bias", Damped())

    @hookimpl
    def on_detach(self, session):
        layer, self._layer = self._layer, None
        if layer is not None and parametrize.is_parametrized(layer, "bias"):
            parametrize.remove_parametrizations(layer, "bias")


class Centralizes(Plugin):
    """Takes the mean out of each row of a gradient."""

    order_matters = True

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            w.grad.sub_(w.grad.mean(dim=tuple(range(1, w.ndim)), keepdim=True))


class SignAgreement(Strong):
    """Decays, by each group's rate, only what the gradient would shrink too."""

    @hookimpl
    def before_step(self, session):
        for index, ws, gradients in session.updates(regplug.Selection("weights")):
            rate = session.learning_rate(index)
            sign = -1 if session.groups[index].get("maximize") else 1
            for w, g in zip(ws, gradients, strict=True):
                w.sub_(w * (sign * w * g > 0) * (rate * self.strength))


class GradientNorm(Strong):
    """Penalizes the norm of the loss's own gradient, by a graph of a graph."""

    @hookimpl
    def on_attach(self, session):
        if dist.is_initialized():
            raise UnsupportedError("each rank would square the gradient of its own samples")

    @hookimpl
    def on_loss(self, session, loss):
        if not loss.requires_grad or not torch.is_grad_enabled():
            return None
        covered = [e.parameter for e in session.coverage(regplug.Selection("weights")).trainable]
        gradients = torch.autograd.grad(loss, covered, create_graph=True, allow_unused=True)
        squares = [g.square().sum() for g in gradients if g is not None]
        sign = -1 if any(group.get("maximize") for group in session.groups) else 1
        return sign * self.strength * torch.stack(squares).sum()


class InputNoise(Plugin):
    """Shakes the inputs of the first layer while training, from torch's stream as dropout does."""

    stochastic = True
    shapes_loss = True

    def __init__(self, scale=0.01, name=None):
        self.scale, self.name = scale, name

    @hookimpl
    def on_attach(self, session):
        layer = next(m for m in session.model.modules() if isinstance(m, nn.Linear))
        self._handle = layer.register_forward_pre_hook(self._shake)

    def _shake(self, module, inputs):
        if module.training and self.scale:
            return (inputs[0] + self.scale * torch.randn_like(inputs[0]), *inputs[1:])
        return None

    @hookimpl
    def on_detach(self, session):
        self._handle.remove()


class ProjectsRows(Plugin):
    """Keeps each row's norm within a bound, after each update."""

    @hookimpl
    def after_step(self, session):
        for w in weights(session):
            norms = w.norm(dim=tuple(range(1, w.ndim)), keepdim=True)
            w.mul_((1.0 / norms.clamp(min=1e-12)).clamp(max=1.0))


UNUSUAL = [
    *(ActivityPenalty, MovingAnchor, WeightNoise, Parametrizes, Centralizes),
    *(SignAgreement, GradientNorm, InputNoise, ProjectsRows),
]
