"""How a penalty's formula reaches gradients and weights, whatever their layout.

A separable penalty is worked on in batches of flat pieces, shard by shard; any other on whole
tensors, which sharded parameters are gathered for. Halves are computed with in float32.
"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from regplug.backend import shards
from regplug.backend.blocks import batches
from regplug.backend.layouts import Layout
from regplug.kernels.pieces import (
    FEW,
    HALVES,
    NO_LAYOUTS,
    Layouts,
    companions,
    is_small,
    whole_companions,
    widened,
)

if TYPE_CHECKING:
    from regplug.penalty import Penalty

__all__ = ["add_each_gradient", "add_gradients", "tell_rounding", "whole_gradient"]


# --- gradients ---------------------------------------------------------------------------------


def add_gradients(
    penalty: "Penalty",
    gradients: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    factor: float,
    layouts: Layouts = NO_LAYOUTS,
) -> None:
    """Add ``factor · gradient(w)`` to each of ``gradients``, in place."""
    if penalty.separable:
        if len(weights) <= FEW and is_small(weights) and penalty._plain:
            penalty.add_gradients(list(gradients), list(weights), factor)
            return
        parts = [shards.local(g) for g in gradients], [shards.local(w) for w in weights]
        for gs, ws, *cs in batches([*parts, *companions(penalty, weights)]):
            # Not detached, which for a thousand small tensors would cost a third of it all.
            wide = [w.float() if w.dtype in HALVES else w for w in ws]
            if cs and not penalty._writes("add_gradients"):
                add_each_gradient(penalty, gs, wide, factor, cs)
            else:
                penalty.add_gradients(gs, wide, factor, *cs)
        return
    for g, w in zip(gradients, weights, strict=True):
        layout = layouts.get(w) if layouts else None
        beside = whole_companions(penalty, w)
        whole = whole_gradient(penalty, shards.full(w), beside, layout)
        shards.local(g).add_(shards.part(whole, w), alpha=factor)


def whole_gradient(
    penalty: "Penalty",
    whole: torch.Tensor,
    companions: Sequence[torch.Tensor],
    layout: Layout | None,
) -> torch.Tensor:
    """Return the gradient of a formula that is given whole weights, in the layout that it wants."""
    if layout is None:
        return penalty._shaped_gradient(widened(whole), *companions)
    given = [penalty._arranged(t, layout) for t in (widened(whole), *companions)]
    return penalty._restored(penalty._shaped_gradient(*given), layout)


def add_each_gradient(
    penalty: "Penalty",
    gradients: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    factor: float,
    columns: Sequence[Sequence[torch.Tensor]] = (),
) -> None:
    """Do so by a call of the formula for each, with its companions out of ``columns``."""
    for g, w, *beside in zip(gradients, weights, *columns, strict=True):
        g.add_(penalty._shaped_gradient(w.detach(), *beside), alpha=factor)


def tell_rounding(
    penalty: "Penalty",
    gradients: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    factor: float,
) -> None:
    """Warn if half-precision gradients are too coarse for most of what is about to be added."""
    for pair in zip(gradients, weights, strict=True):
        g, w = map(shards.local, pair)
        if g.dtype not in HALVES or not penalty.separable or g.layout != torch.strided:
            continue
        if w.numel() == 0:
            continue
        beside = [shards.local(c) for c in penalty.companions(pair[1])]
        added = penalty._shaped_gradient(widened(w), *beside) * factor
        lost = ((g + added).to(g.dtype) == g) & (added != 0)
        if lost.sum() * 2 > (added != 0).sum():
            warnings.warn(
                f"{penalty.name}: most of what it adds rounds away in {g.dtype} gradients; keep "
                "the weights in float32 (autocast does), or use a larger strength",
                stacklevel=2,
            )
            return


# --- proximal operators ------------------------------------------------------------------------
