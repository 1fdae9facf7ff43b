"""Weights as formulas get them: local parts or whole, halves in float32, with companions."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch

from regplug.backend import shards
from regplug.backend.blocks import BLOCK
from regplug.backend.layouts import Layout

if TYPE_CHECKING:
    from regplug.penalty import Penalty

__all__ = [
    "FEW",
    "HALVES",
    "NO_LAYOUTS",
    "Layouts",
    "companions",
    "is_small",
    "whole_companions",
    "widened",
]


Layouts: TypeAlias = Mapping[torch.Tensor, Layout]


NO_LAYOUTS: Layouts = {}


HALVES = (torch.float16, torch.bfloat16)


FEW = 16
"""How many tensors are still few: it pays to look at each of them, and not to join them."""


def is_small(weights: Sequence[torch.Tensor]) -> bool:
    """Whether these can be worked on as they are: plain, not in halves, and of a block together."""
    size = 0
    for w in weights:
        if w.numel() == 0 or w.dtype in HALVES or shards.is_dtensor(w):
            return False
        size += w.numel()
    return 0 < size <= BLOCK


def widened(w: torch.Tensor) -> torch.Tensor:
    """Return halves in float32, in which sums and small strengths survive; others as they are."""
    w = w.detach()
    return w.float() if w.dtype in HALVES else w


def companions(
    penalty: "Penalty", weights: Sequence[torch.Tensor]
) -> list[tuple[torch.Tensor, ...]]:
    """Return a column of this rank's parts for each companion that the weights have."""
    if penalty._plain or not weights or not penalty.companions(weights[0]):
        return []
    rows = [[shards.local(c) for c in penalty.companions(w)] for w in weights]
    return list(zip(*rows, strict=True))


def whole_companions(penalty: "Penalty", w: torch.Tensor) -> list[torch.Tensor]:
    """Return each companion of a weight as a whole tensor: a collective if it is sharded."""
    return [shards.full(companion) for companion in penalty.companions(w)]
