"""Pieces of weights: when they are small, and the layouts that they come with."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch

from regplug.backend import shards
from regplug.backend.blocks import BLOCK, PLAIN
from regplug.backend.layouts import Layout
from regplug.backend.precision import HALVES

__all__ = [
    "FEW",
    "NO_LAYOUTS",
    "Layouts",
    "is_small",
]


Layouts: TypeAlias = Mapping[torch.Tensor, Layout]


NO_LAYOUTS: Layouts = {}


FEW = 16
"""How many tensors are still few: it pays to look at each of them, and not to join them."""


def is_small(weights: Sequence[torch.Tensor]) -> bool:
    """Whether these can be worked on as they are: plain, not in halves, and of a block together."""
    size = 0
    for w in weights:
        own = w.numel()
        if own == 0 or w.dtype in HALVES or (type(w) not in PLAIN and shards.is_spread(w)):
            return False
        size += own
    return 0 < size <= BLOCK
