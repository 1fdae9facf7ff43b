"""How a formula reaches gradients, whatever their layout.

A separable formula is worked on in batches of flat pieces, shard by shard; any other on whole
tensors, which sharded parameters are gathered for. Halves are computed with in float32.
"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

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

if TYPE_CHECKING:
    from regplug.kernels.symbols import Symbol

__all__ = ["Together", "add_gradients", "join", "warn_of_rounding", "whole_gradient"]


Together: TypeAlias = dict[
    tuple[float, torch.dtype, torch.device], tuple[list[torch.Tensor], list[torch.Tensor]]
]
"""Weights and gradients that go in one call: of one sign, dtype and device."""


def join(
    known: tuple[list[torch.Tensor], list[torch.Tensor]],
    weights: list[torch.Tensor],
    gradients: list[torch.Tensor],
) -> None:
    """Put those of a group to others of their kind."""
    known[0].extend(weights)
    known[1].extend(gradients)


def add_gradients(
    kernel: Kernel,
    gradients: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    factor: float,
    layouts: Layouts = NO_LAYOUTS,
) -> None:
    """Add ``factor · gradient(w)`` to each of ``gradients``, in place."""
    if kernel.separable:
        few = len(weights) <= FEW and kernel.plain and is_small(weights)
        if few and not kernel.choice.pays(weights):
            kernel.add_gradients(list(gradients), list(weights), factor)
            return
        _add_separable(kernel, [gradients, weights, *kernel.companion_parts(weights)], factor)
        return
    rows: Sequence[int] = range(len(weights))
    if kernel.rows is not None and kernel.has_gradient and kernel.rows.serves(*weights):
        rows = _add_to_rows(
            kernel, [gradients, weights, *kernel.companion_parts(weights)], factor, layouts
        )
    for g, w in ((gradients[row], weights[row]) for row in rows):
        layout = layouts.get(w) if layouts else None
        companions = kernel.whole_companions(w)
        whole = whole_gradient(kernel, shards.full(w), companions, layout)
        shards.local(g).add_(shards.part(whole, w), alpha=factor)


def _add_separable(
    kernel: Kernel, columns: Sequence[Sequence[torch.Tensor]], factor: float
) -> None:
    def added(g: torch.Tensor, w: "Symbol", *companions: "Symbol") -> torch.Tensor:
        return torch.add(g, kernel.symbolic_gradient(w, *companions), alpha=factor)

    def by_torch(columns: Sequence[Sequence[torch.Tensor]]) -> None:
        for gs, ws, *companions in batches(columns):
            # Not detached, which for a thousand small tensors would cost a third of it all.
            wide = [widened(w) for w in ws]
            kernel.add_gradients(gs, wide, factor, *companions)

    kernel.choice.execute(added, columns, by_torch)


def _add_to_rows(
    kernel: Kernel, columns: Sequence[Sequence[torch.Tensor]], factor: float, layouts: Layouts
) -> Sequence[int]:
    """Add the gradients of groups in one launch; return the rows that are left."""

    def added(g: torch.Tensor, w: torch.Tensor, *companions: torch.Tensor) -> torch.Tensor:
        return torch.add(g, kernel.gradient.formula(w, *companions), alpha=factor)

    assert kernel.rows is not None
    return kernel.rows.apply(added, columns, [layouts.get(w) for w in columns[1]])


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
