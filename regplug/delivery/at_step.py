"""How a formula reaches gradients, whatever their layout.

A separable formula is worked on in batches of flat pieces, shard by shard; any other on whole
tensors, which sharded parameters are gathered for. Halves are computed with in float32.
"""

import warnings
from collections.abc import Sequence

import torch

from regplug.backend import shards
from regplug.backend.blocks import batches
from regplug.backend.layouts import Layout
from regplug.backend.precision import HALVES, widened
from regplug.kernels.kernel import Kernel
from regplug.kernels.pieces import (
    FEW,
    NO_LAYOUTS,
    Layouts,
    is_small,
)

__all__ = ["add_gradients", "warn_of_rounding", "whole_gradient"]


def add_gradients(
    kernel: Kernel,
    gradients: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    factor: float,
    layouts: Layouts = NO_LAYOUTS,
) -> None:
    """Add ``factor · gradient(w)`` to each of ``gradients``, in place."""
    if kernel.separable:
        if len(weights) <= FEW and is_small(weights) and kernel.plain:
            kernel.add_gradients(list(gradients), list(weights), factor)
            return
        parts = [shards.local(g) for g in gradients], [shards.local(w) for w in weights]
        for gs, ws, *of_ws in batches([*parts, *kernel.companion_parts(weights)]):
            # Not detached, which for a thousand small tensors would cost a third of it all.
            wide = [widened(w) for w in ws]
            kernel.add_gradients(gs, wide, factor, *of_ws)
        return
    for g, w in zip(gradients, weights, strict=True):
        layout = layouts.get(w) if layouts else None
        companions = kernel.whole_companions(w)
        whole = whole_gradient(kernel, shards.full(w), companions, layout)
        shards.local(g).add_(shards.part(whole, w), alpha=factor)


def whole_gradient(
    kernel: Kernel,
    whole: torch.Tensor,
    companions: Sequence[torch.Tensor],
    layout: Layout | None,
) -> torch.Tensor:
    """Return the gradient of a formula that is given whole weights, in the layout that it wants."""
    if layout is None:
        return kernel.gradient(widened(whole.detach()), *companions)
    given = [kernel.arranged(t, layout) for t in (widened(whole.detach()), *companions)]
    return kernel.restored(kernel.gradient(*given), layout)


def warn_of_rounding(
    kernel: Kernel,
    gradients: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    factor: float,
) -> None:
    """Warn if half-precision gradients are too coarse for most of what is about to be added."""
    for pair in zip(gradients, weights, strict=True):
        g, w = map(shards.local, pair)
        if g.dtype not in HALVES or not kernel.separable or g.layout != torch.strided:
            continue
        if w.numel() == 0:
            continue
        companions = [shards.local(c) for c in kernel.companions(pair[1])]
        added = kernel.gradient(widened(w.detach()), *companions) * factor
        lost = ((g + added).to(g.dtype) == g) & (added != 0)
        if lost.sum() * 2 > (added != 0).sum():
            warnings.warn(
                f"{kernel.name}: most of what it adds rounds away in {g.dtype} gradients; keep "
                "the weights in float32 (autocast does), or use a larger strength",
                stacklevel=2,
            )
            return
