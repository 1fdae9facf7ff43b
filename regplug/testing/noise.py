"""Modules that draw at random, and the rates that they draw by."""

from collections.abc import Iterator

import torch
from torch import nn

__all__ = ["noisy_modules", "rates"]


def noisy_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that draw at random while training."""
    for module in model.modules():
        if any("drop" in name for name, _ in rates(module)) or (
            "drop" in type(module).__name__.lower()
        ):
            yield module


def rates(module: nn.Module) -> Iterator[tuple[str, float]]:
    """Yield the module's own float attributes, 0-d tensors among them, with their values."""
    for name, value in vars(module).items():
        if isinstance(value, float):
            yield name, value
        elif isinstance(value, torch.Tensor) and value.ndim == 0:
            yield name, float(value)
