"""What regimes train: a small model, the tasks, and the loop with all that regimes vary."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import mse_loss

import regplug

BATCH = 8

DEVICE = os.environ.get("REGPLUG_DEVICE") or "cpu"
"""Where regimes train. The references are computed on the CPU."""
RANKS = 2 if DEVICE == "cpu" else max(1, min(2, torch.cuda.device_count()))
"""In the regimes of ranks: NCCL wants a GPU for each."""


class StochasticDepth(nn.Module):
    """Leaves out whole samples, by an attribute of the name that models use."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_prob = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        kept = torch.rand(len(x), 1, dtype=x.dtype, device=x.device) >= self.drop_prob
        return x * kept / (1 - self.drop_prob)


class Net(nn.Module):
    """Rows of 7, 3 and 1: uneven shards on two ranks, and one that is empty.

    It has one of each kind of module that plugins act on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.norm = nn.LayerNorm(7)
        self.act = nn.Tanh()
        self.drop = nn.Dropout(0.0)
        self.second = nn.Linear(7, 3)
        self.path = StochasticDepth()
        self.gate = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.path(self.second(self.drop(self.act(self.norm(self.first(x))))))
        return out * torch.sigmoid(self.gate(out))


class Words(Net):
    """The same on words, of which there are an odd number."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.embed(x))


class Sum(nn.Module):
    """Layers side by side, whose gradients do not depend on the weights.

    With inputs and targets of few bits they are exact in bfloat16, so that half precision is put
    to the same test as all else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.drop = nn.Dropout(0.0)
        self.second = nn.Linear(5, 3)
        self.path = StochasticDepth()
        self.gate = nn.Linear(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.first(x), self.second(x), self.gate(x)]
        return self.path(self.drop(torch.cat(parts, dim=-1)))


@dataclass(frozen=True)
class Task:
    """What is to be computed; not how."""

    optimizer: str = "momentum"
    micro: tuple[int, ...] = (1, 1, 1, 1, 1)
    """Micro-batches of each step."""
    divisor: int = 1
    """What each micro-batch's loss is divided by."""
    clip: float | None = None
    exact: bool = False
    """Whether the gradients are exact in half precision; the weights are float32 then."""
    words: bool = False
    """Whether the inputs are words."""
    everywhere: bool = False
    """Whether what can act on any weight does, on norms and biases too."""
    oracle: bool = False
    """For the reference: float64, and all micro-batches of a step as one."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.exact and not self.oracle else torch.float64

    @property
    def device(self) -> str:
        return "cpu" if self.oracle else DEVICE

    def share(self, step: int) -> float:
        """What the mean loss of one backward pass is multiplied by."""
        return (self.micro[step] if self.oracle else 1) / self.divisor

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            kind = Sum if self.exact else Words if self.words else Net
            return kind().to(self.device, self.dtype)

    def widened(self, plugin: regplug.Plugin) -> regplug.Plugin:
        """Return ``plugin`` with all that it can act on selected, if the task is about that."""
        anywhere = isinstance(plugin, regplug.Penalty) and plugin.separable
        if self.everywhere and (anywhere or plugin.name == "weight_decay"):
            plugin.where = "all"  # type: ignore[attr-defined]
        return plugin

    def steps(self) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
        generator = torch.Generator().manual_seed(3)

        def draw(*shape: int) -> torch.Tensor:
            if self.exact:
                drawn = torch.randint(-1, 2, shape, generator=generator)
            else:
                drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return drawn.to(self.device, self.dtype)

        def inputs() -> torch.Tensor:
            words = torch.randint(0, 9, (BATCH,), generator=generator) if self.words else None
            return draw(BATCH, 5) if words is None else words.to(self.device)

        width = 11 if self.exact else 3
        steps = [[(inputs(), draw(BATCH, width)) for _ in range(count)] for count in self.micro]
        if not self.oracle:
            return steps
        merged = [[torch.cat(column) for column in zip(*micro, strict=True)] for micro in steps]
        return [[(x, y)] for x, y in merged]

    def criterion(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.exact:
            return (output * target).sum() / len(target)
        return mse_loss(output, target)

    def optimizer_of(self, parameters: Any, **options: Any) -> torch.optim.Optimizer:
        make: dict[str, Callable[[], torch.optim.Optimizer]] = {
            "plain": lambda: torch.optim.SGD(parameters, lr=0.1, **options),
            "momentum": lambda: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, **options),
            "adam": lambda: torch.optim.Adam(parameters, lr=0.02, **options),
        }
        return make[self.optimizer]()


@dataclass
class Outcome:
    """The weights after the last step, by name, and the metrics after each step."""

    weights: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, float]] = field(default_factory=list)

    def plain(self) -> Outcome:
        """Return it without tensors, to be sent between processes."""
        return Outcome({k: v.tolist() for k, v in self.weights.items()}, self.metrics)


@dataclass(frozen=True)
class Regime:
    """One column of the matrix."""

    name: str
    task: Task
    run: Callable[[Task, Any, int, int], Outcome]
    """Called with the task, the plugin, rank and number of ranks."""
    of_ranks: bool = False
    """Whether it runs in a process group, of RANKS processes."""
    ranks: int | None = None
    """Of how many instead, for a mesh that needs them: on the CPU alone."""

    @property
    def count(self) -> int:
        return self.ranks or (RANKS if self.of_ranks else 1)


def regime(
    into: dict[str, Regime],
    name: str,
    task: Task | None = None,
    *,
    of_ranks: bool = False,
    ranks: int | None = None,
) -> Callable[[Any], Any]:
    """Put what is decorated into a table, as a regime of this task."""

    def register(run: Callable[..., Outcome]) -> Callable[..., Outcome]:
        if ranks is None or DEVICE == "cpu":
            into[name] = Regime(name, task or Task(), run, of_ranks or ranks is not None, ranks)
        return run

    return register


def whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def outcome(model: nn.Module, metrics: list[dict[str, float]]) -> Outcome:
    # Parameters that FSDP2 left gathered are not the optimizer's.
    for module in model.modules():
        if hasattr(module, "reshard") and hasattr(module, "unshard"):
            module.reshard()
    named = regplug.selection.where.named_parameters(model)
    return Outcome(
        {n.name.removeprefix("module."): whole(n.parameter).cpu() for n in named}, metrics
    )


def loop(
    task: Task,
    spec: Any,
    *,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    rank: int = 0,
    ranks: int = 1,
    sync: Callable[[nn.Module, bool], Any] = lambda model, last: contextlib.nullcontext(),
    autocast: bool = False,
    optimizer_of: Callable[..., torch.optim.Optimizer] | None = None,
    **options: Any,
) -> Outcome:
    """The loop of everybody: attach after wrapping, backward per micro-batch, clip, step."""
    model = wrap(task.model())
    optimizer = (optimizer_of or task.optimizer_of)(model.parameters(), **options)
    metrics = []
    with regplug.attach(model, optimizer, [spec]) as session:
        for step, micro in enumerate(task.steps()):
            optimizer.zero_grad()
            for number, (x, y) in enumerate(micro):
                with sync(model, number == len(micro) - 1):
                    with torch.autocast(task.device, torch.bfloat16, enabled=autocast):
                        loss = task.criterion(model(x[rank::ranks]), y[rank::ranks])
                    (session.loss(loss) * task.share(step)).backward()
            if task.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), task.clip)
            optimizer.step()
            metrics.append(session.metrics())
        assert session.steps == len(task.micro)
        return outcome(session.model, metrics)
