"""Batches, and steps to which the data adds nothing."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import regplug


def batches(
    count: int, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Return samples of 4 features and targets of 2, the same in every loop."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(count):
        x = torch.randn(5, 4, generator=generator)
        yield x.to(dtype), torch.randn(5, 2, generator=generator).to(dtype)


def zero_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Step with gradients of zero, so that what plugins do is all there is."""
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()


def moved(
    penalty: regplug.Plugin,
    start: torch.Tensor,
    optimizer: Any = torch.optim.SGD,
    steps: int = 1,
    *,
    by_loss: bool = True,
    **settings: Any,
) -> torch.Tensor:
    """Return what a weight becomes from zero gradients and a penalty, one or several steps."""
    model = nn.ParameterList([start.clone()])
    updates = optimizer(model.parameters(), lr=0.1, **settings)
    with regplug.attach(model, updates, [penalty]) as session:
        for _ in range(steps):
            updates.zero_grad()
            loss = (0 * model[0]).sum()
            (session.loss(loss) if by_loss else loss).backward()
            updates.step()
    return model[0].detach()
