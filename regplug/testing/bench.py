"""The bench on which plugins are tried: a small model, its data, and loops around them."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

import regplug
from regplug.discovery.catalog import load
from regplug.plugin import Plugin
from regplug.testing.noise import noisy_modules, rates

__all__ = [
    "Bench",
    "Rig",
    "Sample",
    "Setup",
    "Snapshot",
    "difference",
]


class StochasticDepth(nn.Module):
    """Leaves a sample out with probability ``drop_prob``, as residual networks do with a branch."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x``, shape ``(N, C)``, with some rows zeroed while training."""
        if not self.training:
            return x
        kept = torch.rand(x.shape[0], 1, dtype=x.dtype) >= self.drop_prob
        return x * kept / (1 - self.drop_prob)


class Sample(nn.Module):
    """A small model with what plugins stumble over.

    Odd sizes (seven rows on two ranks, and one row, which leaves a rank without any), a
    normalization, dropout and stochastic depth, and a tied weight.

    Args:
        tied: whether the weight that is used twice has two names, or its module is used twice.
        unused: whether there is a layer that the forward pass leaves out.
        width: of the layers.
    """

    def __init__(self, *, tied: bool = True, unused: bool = False, width: int = 7) -> None:
        super().__init__()
        self.inner = nn.Linear(6, width)
        self.norm = nn.LayerNorm(width)
        self.squash = nn.Tanh()
        self.drop = nn.Dropout(0.35)
        self.path = StochasticDepth(0.15)
        self.one = nn.Linear(width, width, bias=False)
        if tied:
            self.two = nn.Linear(width, width, bias=False)
            self.two.weight = self.one.weight
        self.head = nn.Linear(width, 1)
        if unused:
            self.unused = nn.Linear(width, 3)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in (*self.inner.parameters(), self.one.weight, *self.head.parameters()):
                parameter.normal_(0, 0.8, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return predictions of shape ``(N, 1)`` for ``x`` of shape ``(N, 6)``."""
        out: torch.Tensor = self.head(self.features(x))
        return out

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the head sees, of shape ``(N, width)``."""
        x = self.drop(self.squash(self.norm(self.inner(x))))
        x = x + self.path(self.squash(self.one(x)))
        again = self.two if hasattr(self, "two") else self.one
        out: torch.Tensor = self.squash(again(x))
        return out


def sample_batch(n: int) -> torch.Tensor:
    """Return inputs of shape ``(n, 6)`` for :class:`Sample`."""
    return torch.randn(n, 6, dtype=torch.float64)


@dataclass(frozen=True)
class Bench:
    """The model and the data of an exam; both functions must stand at the top of a module.

    Attributes:
        model: returns a new model, alike each time after ``torch.manual_seed``.
        batch: returns inputs for ``n`` samples, drawn with torch's global generator.
        loss: returns the mean loss of what the model puts out for inputs; None for the mean
            squared error against a target that each sample brings along.
    """

    model: Callable[[], nn.Module] = Sample
    batch: Callable[[int], torch.Tensor] = sample_batch
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    def data(self, step: int, n: int = 8) -> torch.Tensor:
        """Return the inputs of a step, alike each time; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 + step)
            return self.batch(n)


@dataclass(frozen=True)
class Setup:
    """How the plugin under exam is made: a spec or a factory, and what is set on it afterwards."""

    source: Any
    delivery: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def regime(self) -> str:
        """The delivery, or that there is none to choose."""
        return self.delivery or "as given"

    def but(self, **values: Any) -> "Setup":
        """Return the same with other values of some attributes."""
        return replace(self, values={**self.values, **values})

    def make(self) -> Plugin:
        """Return a new instance."""
        if isinstance(self.source, str):
            plugin = load(self.source)
        elif isinstance(self.source, Plugin):
            plugin = copy.deepcopy(self.source)
        else:
            plugin = self.source()
        if self.delivery is not None:
            plugin.delivery = self.delivery  # type: ignore[attr-defined]
        for name, value in self.values.items():
            setattr(plugin, name, value)
        return plugin


@dataclass(frozen=True)
class Snapshot:
    """The weights of a model and the numbers that its modules keep, copied."""

    weights: dict[str, torch.Tensor]
    numbers: dict[str, float]


class Rig:
    """One model with one optimizer and, unless ``setup`` is None, the plugin attached to them.

    Args:
        bench: the model and data.
        setup: the plugin; None for a loop without regplug.
        dtype: of the weights.
        calm: keep dropout and its like from drawing, so that regimes can be compared.
        wrap: what is done to the model before the optimizer is made.
        edit: what is done to the bare model first.
        owned: which parameters the optimizer gets, by name; all by default.
        others: plugins attached after, or with ``first=False`` before, the one under exam.
        first: see there.
        options: of ``torch.optim.SGD``.
    """

    def __init__(
        self,
        bench: Bench,
        setup: Setup | None,
        *,
        dtype: torch.dtype = torch.float64,
        calm: bool = True,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        edit: Callable[[nn.Module], object] | None = None,
        owned: Callable[[str], bool] | None = None,
        others: tuple[Plugin, ...] = (),
        first: bool = True,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.bench, self.dtype = bench, dtype
        self.model = bench.model().to(dtype)
        if edit is not None:
            edit(self.model)
        if calm:
            for module in noisy_modules(self.model):
                module.eval()
        self.forward = self.model if wrap is None else wrap(self.model)
        self.parameters = dict(self.model.named_parameters())
        self._modules = {m: {*vars(m), *dir(type(m))} for m in self.model.modules()}
        self.optimizer = torch.optim.SGD(
            [p for name, p in self.parameters.items() if owned is None or owned(name)],
            **{"lr": 0.02, **options},
        )
        self.plugin: Plugin | None = None
        self.session: regplug.Session | None = None
        if setup is not None:
            self.attach(setup.make(), others, first=first)
        torch.manual_seed(1)

    def attach(
        self, plugin: Plugin, others: tuple[Plugin, ...] = (), *, first: bool = True
    ) -> None:
        """Attach a plugin, with others after or before it."""
        self.plugin = plugin
        plugins = [plugin, *others] if first else [*others, plugin]
        self.session = regplug.attach(self.forward, self.optimizer, plugins)

    def move(self) -> "Rig":
        """Take the weights away from where they were at attach, from which a plugin may measure."""
        with torch.no_grad():
            for parameter in self.parameters.values():
                parameter.mul_(1.5)
        return self

    def pulls(self, step: int) -> dict[str, torch.Tensor]:
        """Make a step and return what the weights were moved by, divided by the learning rate.

        With plain SGD that is all that there was of gradients, wherever it was added.
        """
        before = self.snapshot().weights
        self.step(step)
        rate = self.optimizer.param_groups[0]["lr"]
        return {name: (before[name] - w) / rate for name, w in self.snapshot().weights.items()}

    def data(self, step: int, n: int = 8) -> torch.Tensor:
        """Return the inputs of a step in the model's dtype."""
        x = self.bench.data(step, n)
        return x.to(self.dtype) if x.is_floating_point() else x

    def criterion(self, x: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch, without any plugin's."""
        out = self.forward(x)
        if self.bench.loss is not None:
            return self.bench.loss(out, x)
        target = torch.sin(x.flatten(1).sum(1)).to(out.dtype)
        error: torch.Tensor = out - target.view(-1, *[1] * (out.ndim - 1)).detach()
        return error.square().mean()

    def loss(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Return ``scale`` times the criterion, through the loss event if there is a session."""
        loss = self.criterion(x) * scale
        return loss if self.session is None else self.session.loss(loss)

    def backward(self, step: int, scale: float = 1.0) -> None:
        """Clear the gradients and compute those of a step."""
        self.optimizer.zero_grad()
        self.loss(self.data(step), scale).backward()

    def step(self, step: int) -> None:
        """Make one ordinary step."""
        self.backward(step)
        self.optimizer.step()

    def run(self, steps: int = 3) -> Snapshot:
        """Make that many ordinary steps and return what they led to."""
        for step in range(steps):
            self.step(step)
        return self.snapshot()

    def snapshot(self) -> Snapshot:
        """Return copies of the weights and of the modules' numbers."""
        weights = {name: whole(p).detach().clone() for name, p in self.parameters.items()}
        # What is noted on a module that has no such attribute makes no difference to it.
        numbers = {
            f"{path}.{name}".lstrip("."): value
            for path, module in self.model.named_modules()
            for name, value in rates(module)
            if name in self._modules.get(module, (name,))
        }
        return Snapshot(weights, numbers)

    def detach(self) -> None:
        """Detach the session, if there is one."""
        if self.session is not None:
            self.session.detach()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sharded tensor whole: a collective."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def difference(
    found: Snapshot, expected: Snapshot, *, rtol: float = 1e-7, atol: float = 1e-9
) -> str | None:
    """Return in words where two snapshots differ most, or None if they don't.

    With ``rtol=atol=0`` they must be the same to the bit.
    """
    worst, gap_in_words = 0.0, None
    for name, weight in expected.weights.items():
        other = found.weights[name].to(weight.dtype)
        gap = (other - weight).abs()
        excess = float((gap - atol - rtol * weight.abs()).max()) if gap.numel() else 0.0
        if math.isnan(excess) or excess > worst:
            worst = math.inf if math.isnan(excess) else excess
            gap_in_words = f"{name} differs by up to {float(gap.max()):.3g}"
    for name, value in expected.numbers.items():
        other_value = found.numbers.get(name, math.nan)
        if not math.isclose(other_value, value, rel_tol=1e-6, abs_tol=1e-9):
            gap_in_words = f"{name} is {other_value:g} instead of {value:g}"
    return gap_in_words
