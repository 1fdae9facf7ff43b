"""Where the groups of weights lie in memory, and what a kernel of rows needs to know of it."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from regplug.backend.blocks import PLAIN
from regplug.backend.layouts import ORIENTATIONS, Layout
from regplug.kernels.packed import sent

__all__ = ["TABLES", "Geometries", "RowRun", "RowTable", "are_plain", "axis_of", "geometry_of"]

Geometries: TypeAlias = tuple[tuple[int, ...], ...]
"""Of each tensor what :data:`regplug.kernels.row_lines.SHAPES` says."""

RowRun: TypeAlias = Callable[
    [
        Sequence[float],
        Geometries,
        Sequence[Sequence[torch.Tensor]],
        Sequence[Sequence[torch.Tensor]],
    ],
    None,
]
"""Given numbers, geometries, columns and scalars: executes an expression of rows."""

TABLES = 64
"""As many lists of tensors are remembered."""

_MOST = (1 << 31) - 1


def axis_of(orientation: str, layout: Layout | None) -> int | None:
    """Return the dimension that tells groups apart, in a weight as it is kept.

    It is None where the groups of a weight are no slices of it.
    """
    axis = ORIENTATIONS.index(orientation)
    if layout is None:
        return axis
    if not layout.is_view(orientation):
        return None
    return 1 - axis if layout.transposed else axis


def geometry_of(row: Sequence[torch.Tensor], axis: int) -> tuple[int, ...] | None:
    """Return how the groups of corresponding tensors lie in memory, in all of them alike.

    The numbers are those of :data:`regplug.kernels.row_lines.SHAPES`. It is None where a kernel
    can't go through them: they lie otherwise in one than in another, or in more than runs of runs.

    >>> geometry_of([torch.empty(4, 3)], 0), geometry_of([torch.empty(4, 3, 2)], 1)
    ((3, 3, 0, 1, 3, 4, 12), (8, 2, 6, 1, 2, 3, 24))
    """
    first = row[0]
    shape, strides = first.shape, first.stride()
    if len(shape) < 2 or any(t.shape != shape or t.stride() != strides for t in row):
        return None
    inside = sorted(
        (stride, size)
        for d, (stride, size) in enumerate(zip(strides, shape, strict=True))
        if d != axis and size != 1
    )
    runs: list[tuple[int, int]] = []  # (stride, size), those that follow each other as one
    for stride, size in inside:
        if runs and stride == runs[-1][0] * runs[-1][1]:
            runs[-1] = (runs[-1][0], runs[-1][1] * size)
        else:
            runs.append((stride, size))
    groups = shape[axis]
    length = first.numel() // max(groups, 1)
    if len(runs) > 2 or length > _MOST:
        return None
    (near, inner), (far, _) = [*runs, (1, length), (0, 1)][:2] if runs else [(1, 1), (0, 1)]
    if len(runs) < 2:
        inner, far = length, 0
    return (length, inner, far, near, strides[axis], groups, first.numel())


class RowTable:
    """The groups of some tensors, on their device. Addresses are sent anew where they changed.

    Attributes:
        programs: the number of groups, each of which is a program's.
        block: how many elements a program reads at a time.
        is_nested: whether the elements of some group are more than one run.
    """

    def __init__(self, geometries: Geometries, device: torch.device) -> None:
        shapes = torch.tensor(geometries, dtype=torch.int64)
        counts = shapes[:, -2]
        longest = int(shapes[:, 0].max())
        self.programs = int(counts.sum())
        self.block = min(max(1 << (longest - 1).bit_length(), 32), 1024)
        self.is_nested = any(geometry[0] != geometry[1] for geometry in geometries)
        self.shapes = sent(shapes.T.contiguous(), device)
        self.firsts = sent((counts.cumsum(0) - counts).to(torch.int32), device)
        rows = torch.arange(len(geometries), dtype=torch.int32)
        self.rows = sent(torch.repeat_interleave(rows, counts), device)
        self.device = device
        self._sent: dict[str, tuple[Any, torch.Tensor]] = {}

    def addresses(self, columns: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
        """Return the addresses of tensors, on the device."""
        found = [[tensor.data_ptr() for tensor in column] for column in columns]
        return self._on_device("addresses", found, torch.int64)

    def numbers(self, numbers: Sequence[float]) -> torch.Tensor:
        """Return an expression's numbers, on the device."""
        return self._on_device("numbers", list(numbers) or [0.0], torch.float64)

    def _on_device(self, name: str, values: list[Any], dtype: torch.dtype) -> torch.Tensor:
        known = self._sent.get(name)
        if known is None or known[0] != values:
            tensor = sent(torch.tensor(values, dtype=dtype), self.device)
            known = self._sent[name] = values, tensor
        return known[1]


def are_plain(columns: Sequence[Sequence[torch.Tensor]], row: int) -> bool:
    """Whether these are tensors of this process alone, of one device."""
    tensors = [column[row] for column in columns]
    return all(type(t) in PLAIN for t in tensors) and len({t.device for t in tensors}) == 1
