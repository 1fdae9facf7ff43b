"""Loops in which torch's own weight_decay may do what l2 does."""

from typing import Any

import torch
from torch import nn

SPEC = "l2(0.25, where='all', delivery='step')"
DECAY = 0.5
"""2·0.25, as torch names it."""


def network() -> nn.Module:
    """Return a small network in float64, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def backward(model: nn.Module, step: int = 0) -> None:
    """Leave the gradients of one batch, another one for each step."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 4, generator=generator, dtype=torch.float64)
    model(x.to(next(model.parameters()))).square().mean().backward()


def train(model: nn.Module, optimizer: Any, steps: int = 5) -> list[torch.Tensor]:
    """Return the weights after some steps."""
    for step in range(steps):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def close(found: Any, expected: Any, rtol: float = 1e-11) -> None:
    """Assert that weights are alike but for rounding."""
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)
