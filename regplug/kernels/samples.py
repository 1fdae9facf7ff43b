"""A new kernel against torch's own operations, on a sample and on the numbers that are odd."""

import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

__all__ = ["compared", "disagreement"]

_TENSORS, _ELEMENTS = 8, 512

_ODD = (0.0, -0.0, 1.0, -1.0, 0.01, -3.0, float("inf"), float("-inf"), float("nan"))

_Run = Callable[[list[list[torch.Tensor]]], Any]


def disagreement(
    compiled: _Run,
    reference: _Run,
    columns: Sequence[Sequence[torch.Tensor]],
    target: int | None,
    nonnegative: Collection[int] = (),
) -> str | None:
    """Return in what two ways of one computation differ by more than rounding, or None.

    Args:
        compiled: the one, given columns, in place.
        reference: the other.
        columns: of which a sample is taken; they are not changed.
        target: the column that is written; None for sums, which are returned.
        nonnegative: columns that have no negative elements.
    """
    sample = _sample(columns)
    if target is None:
        found, expected = float(compiled(_copied(sample))), float(reference(_copied(sample)))
        if abs(found - expected) <= 1e-4 * abs(expected) + 1e-30:
            return None
        return f"it gives {found:g} where torch gives {expected:g}"
    for rows in (sample, _odd(columns, nonnegative)):
        if (why := compared(rows, compiled, reference, target)) is not None:
            return why
    return None


def compared(
    rows: list[list[torch.Tensor]], compiled: _Run, reference: _Run, target: int
) -> str | None:
    """Return in what two ways of one computation differ on these columns, or None."""
    own, other, wide = _copied(rows), _copied(rows), _copied(rows, torch.float64)
    compiled(own)
    reference(other)
    reference(wide)
    every = [_flat(c[target]) for c in (rows, own, other, wide)]
    where = _where_unlike(every, _largest(rows))
    if where is None:
        return None
    given = [float(_flat(column)[where]) for column in rows]
    return (
        f"it gives {float(every[1][where]):g} where torch gives "
        f"{float(every[2][where]):g}, of {', '.join(f'{value:g}' for value in given)}"
    )


def _flat(column: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in column])


def _sample(columns: Sequence[Sequence[torch.Tensor]]) -> list[list[torch.Tensor]]:
    count = len(columns[0])
    rows = range(0, count, max(1, count // _TENSORS))
    return [[_head(column[row]) for row in rows] for column in columns]


def _head(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach()
    # Elements of a row correspond by their place in memory.
    flat = flat.as_strided((flat.numel(),), (1,)) if flat.numel() else flat.reshape(-1)
    return flat[:_ELEMENTS].clone()


def _odd(
    columns: Sequence[Sequence[torch.Tensor]], nonnegative: Collection[int]
) -> list[list[torch.Tensor]]:
    """Return columns of one tensor each, in which all odd numbers meet each other."""
    dtype = columns[0][0].dtype
    few = _ODD if len(columns) < 4 else _ODD[:3] + _ODD[6:]
    if len(columns) < 4 and dtype != torch.bfloat16:  # whose denormals Triton's interpreter drops
        few = (*few, torch.finfo(dtype).tiny / 4)
    values_of = [[abs(v) for v in few] if c in nonnegative else few for c in range(len(columns))]
    meetings = list(itertools.product(*values_of))
    return [
        [torch.tensor(values, dtype=column[0].dtype, device=column[0].device)]
        for values, column in zip(zip(*meetings, strict=True), columns, strict=True)
    ]


def _copied(
    columns: Sequence[Sequence[torch.Tensor]], dtype: torch.dtype | None = None
) -> list[list[torch.Tensor]]:
    return [[tensor.to(dtype or tensor.dtype, copy=True) for tensor in c] for c in columns]


def _where_unlike(results: Sequence[torch.Tensor], largest: float) -> int | None:
    """Return where a result is further from the exact one than torch's, and rounding, explain.

    Args:
        results: what was there before, what was found, what torch gives, and the exact ones.
        largest: of all finite numbers that went into them.
    """
    before, found, expected, exact = results
    limits = torch.finfo(expected.dtype)
    found_, size = found.double(), exact.abs() + before.double().abs()
    if expected.dtype == exact.dtype:  # in which differences of large numbers are rounded, too
        size += largest
    allowed = 32 * limits.eps * size + 4 * (expected.double() - exact).abs() + 2 * limits.tiny
    alike = (found_ - exact).abs() <= allowed
    alike |= (found == expected) | (found.isnan() & expected.isnan())
    return None if bool(alike.all()) else int((~alike).nonzero()[0])


def _largest(columns: Sequence[Sequence[torch.Tensor]]) -> float:
    every = torch.cat([tensor.flatten().double() for column in columns for tensor in column])
    return float(every.nan_to_num(posinf=0.0, neginf=0.0).abs().max())
