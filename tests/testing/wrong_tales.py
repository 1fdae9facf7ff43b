"""Plugins that are wrong on purpose in what they tell, and in copies, precision and devices."""

import torch
from torch import nn

import regplug
from regplug import Penalty, hookimpl
from tests.testing.wrong_formulas import Strong, weights
from tests.testing.wrong_remains import Shrinks


class WeighsInMetrics(Shrinks):
    """Shrinks once more when it is asked for metrics."""

    @hookimpl
    def on_metrics(self, session):
        for p in session.model.parameters():
            p.data.mul_(1 - 1e-4)
        return {"shrunk": 1.0}


class EvaluatesForMetrics(Shrinks):
    """Turns the model to eval() for a metric, and back to train(), whatever it was."""

    @hookimpl
    def on_metrics(self, session):
        session.model.eval()
        norm = sum(float(p.detach().norm()) for p in session.model.parameters())
        session.model.train()
        return {"norm": norm}


class CountsAsked(Shrinks):
    """Tells how often it was asked."""

    asked = 0

    @hookimpl
    def on_metrics(self, session):
        self.asked += 1
        return {"asked": self.asked}


class TellsText(Shrinks):
    """Returns a word as a metric."""

    @hookimpl
    def on_metrics(self, session):
        return {"mode": "fast"}


class AdaptsWhenAsked(Strong):
    """Acts half as strongly once metrics were asked for, though nothing shows it at once."""

    told = False

    @hookimpl
    def before_step(self, session):
        for w in weights(session):
            w.mul_(1 - self.strength * (0.5 if self.told else 1))

    @hookimpl
    def on_metrics(self, session):
        self.told = True
        return {"told": 1.0}


class NoWords(Shrinks):
    """Fails to say where it acts before it has acted."""

    @hookimpl
    def after_step(self, session):
        self._seen = session.steps

    def acts(self, session):
        return f"up to step {self._seen}"


class OtherWords(Shrinks):
    """Says something else each time."""

    def notes(self, session):
        self.told = getattr(self, "told", 0) + 1
        return [f"told {self.told} times"]


class CoversOne(Shrinks):
    """Says that it covers one weight, and shrinks all."""

    def covers(self, session):
        return 1, 7


class KeepsGraphOnModule(Strong):
    """Keeps a term on the module, with its graph: such a model can't be copied."""

    @hookimpl
    def on_loss(self, session):
        covered = session.coverage(regplug.Selection("weights")).trainable
        sign = -1 if session.groups[0].get("maximize") else 1
        term = torch.stack([e.parameter.square().mean() for e in covered]).sum()
        session.model.penalties = [term]
        return sign * self.strength * term

    @hookimpl
    def on_detach(self, session):
        vars(session.model).pop("penalties", None)


class OpensFile(Shrinks):
    """Holds what can't be copied from the first."""

    def __init__(self, strength=0.01, name=None):
        super().__init__(strength, name)
        self._lines = (line for line in ())


class SharesWithCopies(Shrinks):
    """Watches a module by a closure, and shrinks by how often it was called, by copies too."""

    @hookimpl
    def on_attach(self, session):
        self.calls = calls = [0]
        module = next(m for m in session.model.modules() if isinstance(m, nn.Linear))

        def count(module, inputs, output):
            if torch.is_grad_enabled():
                calls[0] += 1

        self._handle = module.register_forward_hook(count)

    @hookimpl
    def before_step(self, session):
        calls, self.calls[0] = self.calls[0], 0
        for w in weights(session):
            w.mul_(1 - self.strength * calls)

    @hookimpl
    def on_detach(self, session):
        self._handle.remove()


class Watches(Strong):
    """Adds what ``measure`` makes of a linear layer's output to the loss."""

    def __init__(self, strength=1.0, name=None):
        super().__init__(strength, name)

    @hookimpl
    def on_attach(self, session):
        module = next(m for m in session.model.modules() if isinstance(m, nn.Linear))
        self._output = None
        self._handle = module.register_forward_hook(self._keep)

    def _keep(self, module, inputs, output):
        if torch.is_grad_enabled():
            self._output = output

    @hookimpl
    def on_loss(self, session, loss):
        output, self._output = self._output, None
        if output is None:
            return None
        sign = -1 if session.groups[0].get("maximize") else 1
        return sign * self.strength * self.measure(output)

    @hookimpl
    def on_detach(self, session):
        self._handle.remove()
        self._output = None


class IgnoresHalf(Watches):
    """Measures what is in single precision or better, and nothing else, without a word."""

    def measure(self, output):
        wide = output.dtype in (torch.float32, torch.float64)
        return output.square().mean() if wide else output.sum() * 0


class Scaled(Watches):
    """Measures in units that the dtype's precision sets."""

    def measure(self, output):
        return output.square().mean() * (1 + torch.finfo(output.dtype).eps * 100)


class TargetOnCpu(Penalty):
    """Pulls towards a vector that is made where torch makes tensors."""

    def value(self, w):
        return (w - torch.full(w.shape, 0.5, dtype=w.dtype)).square().sum()


class MeasuresOnCpu(Penalty):
    """Names the CPU."""

    def value(self, w):
        return w.to("cpu").square().sum()


class NoiseOnCpu(Strong):
    """Draws on the CPU, whatever the weights are on."""

    stochastic = True

    @hookimpl
    def on_attach(self, session):
        self._generator = torch.Generator().manual_seed(3)

    @hookimpl
    def on_gradients(self, session):
        for w in weights(session):
            noise = torch.randn(w.shape, dtype=w.dtype, device="cpu", generator=self._generator)
            w.grad.add_(noise, alpha=self.strength)


class ThroughNumpy(Strong):
    """Computes its factor by numpy."""

    @hookimpl
    def before_step(self, session):
        for w in weights(session):
            norm = float((w.detach().float().numpy() ** 2).sum() ** 0.5)
            w.mul_(1 - self.strength / (1 + norm))


class DefaultDtypeBuffer(Strong):
    """Multiplies by a matrix in torch's default dtype."""

    @hookimpl
    def before_step(self, session):
        for w in weights(session):
            eye = torch.eye(w.shape[0], device=w.device)
            if eye.dtype != w.dtype and w.dtype != torch.float32:
                eye = eye.to(w.dtype)
            w.copy_((eye * (1 - self.strength)) @ w)


class MovesWeights(Strong):
    """Shrinks on the CPU and gives back a tensor of the CPU."""

    @hookimpl
    def before_step(self, session):
        for w in weights(session):
            small = w.detach().cpu() * (1 - self.strength)
            factor = torch.arange(1, small.numel() + 1).view(small.shape).to(small) * 0 + 1
            w.mul_(factor * 0 + 1)
            w.copy_(small)


# --- right ones that look alike ------------------------------------------------------------------


class TargetInPlace(Penalty):
    """Right: makes its target where the weights are, by four ways."""

    def value(self, w):
        half = torch.full_like(w, 0.25) + w.new_full(w.shape, 0.25)
        more = torch.zeros(w.shape, dtype=w.dtype, device=w.device)
        number = torch.tensor(1.0, dtype=w.dtype, device=w.device)
        return ((w - half + more) * number).square().sum()


class CpuScalar(Shrinks):
    """Right: a 0-d tensor of the CPU serves on any device."""

    @hookimpl
    def before_step(self, session):
        factor = torch.tensor(1 - self.strength, device="cpu", dtype=torch.float64)
        for w in weights(session):
            w.mul_(factor)


class ThroughCpu(Shrinks):
    """Right: counts on the CPU, and brings the number back."""

    @hookimpl
    def before_step(self, session):
        for w in weights(session):
            norm = float(w.detach().cpu().norm())
            w.mul_(1 - self.strength / (1 + norm))


class TellsNorm(Shrinks):
    """Right: measures the model as it is."""

    @hookimpl
    def on_metrics(self, session):
        with torch.no_grad():
            return {"norm": sum(p.double().norm() for p in session.model.parameters())}
