"""What the pictures are of: small real problems, trained with and without a plugin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import regplug

QUICK = False
"""Whether all trainings take a handful of steps, as in the test of this folder."""

STEPS = 600


def steps(full: int = STEPS) -> int:
    """Return how many steps a training takes."""
    return min(full, 12) if QUICK else full


def digits(samples: int = 300) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images (64 pixels within [−1, 1]) and labels to train on, and those to test with."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.data, dtype=torch.float32)[order] / 8 - 1
    y = torch.tensor(data.target)[order]
    return x[:samples], y[:samples], x[900:], y[900:]


def network(hidden: int = 32, dropout: float | None = None) -> nn.Sequential:
    """Return a network of one hidden layer, the same each time."""
    torch.manual_seed(0)
    drop = [] if dropout is None else [nn.Dropout(dropout)]
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), *drop, nn.Linear(hidden, 10))


def batches(x: Tensor, y: Tensor, count: int, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random batches, the same each time."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        rows = torch.randint(len(x), (size,), generator=generator)
        yield x[rows], y[rows]


@contextmanager
def attached(
    model: nn.Module, plugins: Sequence[Any], optimizer: torch.optim.Optimizer
) -> Iterator[regplug.Session]:
    """Attach plugins, and take them off again."""
    session = regplug.attach(model, optimizer, plugins)
    try:
        yield session
    finally:
        session.detach()


def trained(
    plugins: Sequence[Any],
    *,
    model: nn.Module | None = None,
    watch: Callable[[regplug.Session], Any] | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    criterion: nn.Module | None = None,
    lr: float = 5e-3,
    count: int = STEPS,
) -> tuple[nn.Module, list[Any]]:
    """Train on the digits; return the model, and what ``watch`` saw after each step."""
    torch.manual_seed(0)
    model = network() if model is None else model
    criterion = nn.CrossEntropyLoss() if criterion is None else criterion
    x, y, *_ = digits()
    seen = []
    with attached(model, plugins, optimizer(model.parameters(), lr=lr)) as session:
        model.train()
        for inputs, targets in batches(x, y, steps(count)):
            session.optimizer.zero_grad()
            session.loss(criterion(model(inputs), targets)).backward()
            session.optimizer.step()
            if watch is not None:
                seen.append(watch(session))
    return model, seen


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Return how many of a hundred test images are read right."""
    *_, x, y = digits()
    return 100 * (model.eval()(x).argmax(1) == y).float().mean().item()


def loss_of(model: nn.Module) -> float:
    """Return the loss on the test images, without dropout."""
    *_, x, y = digits()
    with torch.no_grad():
        return F.cross_entropy(model.eval()(x), y).item()


def zeros(w: Tensor) -> float:
    """Return how many of a hundred elements are exactly 0."""
    return 100 * (w == 0).float().mean().item()
