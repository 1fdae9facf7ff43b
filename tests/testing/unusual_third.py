"""Right plugins as authors may publish them, of which some looked wrong to the exam once."""

import itertools
import math

import torch
from torch import nn

import regplug
from regplug import Adaptive, JointPenalty, Penalty, Scheduled, Selective, full, hookimpl, local


class LogSum(Penalty):
    """Σ log(1 + |w|/ε) of Candès et al. (2008), with its proximal operator by a square root."""

    separable = True
    epsilon = Scheduled(low=1e-3, off=None)

    def __init__(self, strength=0.01, *, epsilon=0.5, where="weights", delivery="auto", name=None):
        super().__init__(strength, where=where, delivery=delivery, name=name)
        self.epsilon = epsilon

    def value(self, w):
        return torch.log1p(w.abs() / self.epsilon).sum()

    def gradient(self, w):
        return w.sign() / (self.epsilon + w.abs())

    def proximal(self, w, step):
        t, e, a = step * self.strength, self.epsilon, w.abs()
        root = (a + e).square() - 4 * t
        u = ((a - e + root.clamp(min=0).sqrt()) / 2).clamp(min=0)
        less = (u - a).square() / 2 + t * torch.log1p(u / e) < a.square() / 2
        return w.sign() * torch.where((root >= 0) & less, u, torch.zeros_like(u))


class Bridge(Penalty):
    """Σ|w|^p with p from 1 to 2, which may be scheduled within that range."""

    separable = True
    p = Scheduled(low=1.0, high=2.0, off=None)

    def __init__(self, strength=0.01, p=1.5, *, where="weights", delivery="auto", name=None):
        super().__init__(strength, where=where, delivery=delivery, name=name)
        self.p = p

    def value(self, w):
        return w.abs().pow(self.p).sum()

    def gradient(self, w):
        return self.p * w.sign() * w.abs().pow(self.p - 1)


class HoyerByLargest(Penalty):
    """(Σ|w|)²/Σw² of weights over the largest of them, so that nothing overflows."""

    def value(self, w):
        most = w.detach().abs().amax()
        u = w / torch.where(most > 0, most, torch.ones_like(most))
        ratio = u.abs().sum().square() / u.square().sum().clamp(min=1)
        return torch.where(most > 0, ratio, (0 * w).sum())


class Biases(Penalty):
    """l2 of biases, unless it is told otherwise."""

    separable = True

    def __init__(self, strength=0.01, *, where="*.bias", delivery="auto", name=None):
        super().__init__(strength, where=where, delivery=delivery, name=name)

    def value(self, w):
        return w.square().sum()


class Inputs(Penalty):
    """A group lasso of inputs."""

    orientation = "columns"

    def value(self, w):
        dims = [d for d in range(w.ndim) if d != 1] if w.ndim > 1 else [0]
        return torch.linalg.vector_norm(w, dim=dims).sum()


class ListsFirst(Penalty):
    """log cosh, mostly by lists."""

    separable = True

    def value(self, w):
        return (w.abs() + nn.functional.softplus(-2 * w.abs()) - math.log(2)).sum()

    def gradient(self, w):
        return w.tanh()

    def add_gradients(self, gradients, weights, factor):
        torch._foreach_add_(gradients, torch._foreach_tanh(weights), alpha=factor)


class AlikeNeighbours(JointPenalty):
    """The difference of mean squares of layers that follow each other."""

    def groups(self, session):
        found = [m.weight for m in session.model.modules() if isinstance(m, nn.Linear)]
        for first, second in itertools.pairwise(found):
            if first is not second:
                yield first, second

    def value(self, first, second):
        return (first.square().mean() - second.square().mean()).square()


class Thermostat(Adaptive, Penalty):
    """l2 that rises while the mean square of what is trained is over a target."""

    separable = True

    def __init__(self, strength=0.01, *, target=0.05, where="weights", delivery="auto", name=None):
        super().__init__(strength, where=where, delivery=delivery, name=name)
        self.target = target

    def value(self, w):
        return w.square().sum() / 2

    def gradient(self, w):
        return w

    def adapt(self, session):
        total = count = 0.0
        for _, ws, _ in session.updates(self._selection):
            for w in map(full, ws):
                total, count = total + float(w.square().sum()), count + w.numel()
        if count:
            self.strength = min(
                1.0, self.strength * (1.01 if total > self.target * count else 0.99)
            )


class ClipsUnits(Selective):
    """No row of a gradient is longer than a share of its weights: Brock et al. (2021)."""

    clip = Scheduled(off=None)
    order_matters = True
    by_pattern = True

    def __init__(self, clip=0.01, *, least=1e-3, where="weights", name=None):
        self.clip, self.least, self.where, self.name = clip, least, where, name

    @hookimpl
    def on_gradients(self, session):
        for _, ws, gradients in self.by_part(session):
            for w, g in zip(ws, gradients, strict=True):
                whole = full(g)
                most = _lengths(full(w)).clamp(min=self.least) * self.clip
                clipped = whole * (most / _lengths(whole).clamp(min=1e-30)).clamp(max=1)
                local(g).copy_(regplug.part(clipped, g))


def _lengths(t):
    dims = tuple(range(1, t.ndim)) if t.ndim > 1 else None
    return torch.linalg.vector_norm(t.detach(), dim=dims, keepdim=True)


class DecaysByCosine(Selective):
    """Decoupled decay in the share of its first learning rate that each group has left."""

    rate = Scheduled()

    def __init__(self, rate=0.1, *, where="weights", name=None):
        self.rate, self.where, self.name = rate, where, name

    @hookimpl
    def before_step(self, session):
        for index, ws, _ in session.updates(self._selection):
            group = session.groups[index]
            first = float(group.get("initial_lr", group["lr"])) or 1.0
            left = float(session.learning_rate(index)) / first
            for w in ws:
                local(w).mul_(1 - 0.01 * self.rate * left)


class Simplex(Selective):
    """Puts each row to the nearest point with Σu = 1 and u ≥ 0."""

    projects = True

    def __init__(self, *, where="weights", name=None):
        self.where, self.name = where, name

    @hookimpl
    def after_step(self, session):
        for _, ws, _ in session.updates(self._selection):
            for w in ws:
                whole = full(w).detach()
                rows = whole.flatten(1) if whole.ndim > 1 else whole.reshape(1, -1)
                nearest = _on_simplex(rows.float()).to(whole.dtype).reshape(whole.shape)
                local(w).copy_(regplug.part(nearest, w))


def _on_simplex(rows):
    ordered = rows.sort(dim=-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    count = torch.arange(1, rows.shape[-1] + 1, device=rows.device, dtype=rows.dtype)
    last = (ordered * count > excess).sum(-1, keepdim=True)
    return (rows - excess.gather(-1, last - 1) / last).clamp(min=0)


class Tempered(regplug.Plugin):
    """Sets a number of which its module's class has one, and sets it back as it read it."""

    factor = Scheduled(off=None)
    shapes_loss = True

    def __init__(self, factor=1.5, *, name=None):
        self.factor, self.name = factor, name
        self.own = {}

    def tell(self, step):
        for module in self.own:
            module.temperature = type(self).factor.at(self, step)

    @hookimpl
    def on_attach(self, session):
        found = [m for m in session.model.modules() if hasattr(m, "temperature")]
        if not found:
            raise regplug.errors.SelectionError(f"{self.name}: no module has a temperature")
        self.own = {module: module.temperature for module in found}
        self.tell(session.steps)

    @hookimpl
    def after_step(self, session):
        self.tell(session.steps + 1)

    @hookimpl
    def on_load_state(self, session, state):
        self.tell(session.steps)

    @hookimpl
    def on_detach(self, session):
        for module, own in self.own.items():
            module.temperature = own
        self.own = {}

    @staticmethod
    def exam_model():
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), Softened(5, 1))


class Softened(nn.Linear):
    temperature = 1.0

    def forward(self, x):
        return super().forward(x) / self.temperature
