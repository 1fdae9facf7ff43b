"""The same to the bit, and close."""

from typing import Any

import torch
from torch import nn


def same(ours: Any, theirs: Any) -> bool:
    """Tell whether two states, lists of tensors or models hold the same, to the bit."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, nn.Module):
        return same(list(ours.parameters()), list(theirs.parameters()))
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-12) -> None:
    """Fail unless they differ by ``atol`` at most, whatever their size."""
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=0, atol=atol)
