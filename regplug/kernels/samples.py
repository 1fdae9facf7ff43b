"""A new kernel against torch's own operations, on a sample and on the numbers that are odd."""

import itertools
import math
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
    *,
    fresh: bool = False,
) -> str | None:
    """Return in what two ways of one computation differ by more than rounding, or None.

    Args:
        compiled: the one, given columns, in place.
        reference: the other.
        columns: of which a sample is taken; they are not changed.
        target: the column that is written; None for sums, which are returned.
        nonnegative: columns that have no negative elements.
        fresh: whether the target is new memory, of any content.
    """
    sample = _sample(columns)
    if target is None:
        return _disagreement_of_sums(compiled, reference, sample, _odd(columns, nonnegative))
    for rows in (sample, _odd(columns, nonnegative)):
        if fresh:
            rows[target] = [torch.zeros_like(t) for t in rows[target]]
        if (why := compared(rows, compiled, reference, target)) is not None:
            return why
    return None


def _disagreement_of_sums(
    compiled: _Run,
    reference: _Run,
    sample: list[list[torch.Tensor]],
    odd: list[list[torch.Tensor]],
) -> str | None:
    """Compare sums over single elements, odd ones and some of the sample, and over all of that."""
    dtype = sample[0][0].dtype
    several = [[*ours, *theirs] for ours, theirs in zip(_ends(sample), odd, strict=True)]
    singles = [
        [[t[i : i + 1]] for t in row]
        for row in zip(*several, strict=True)
        for i in range(row[0].numel())
    ]
    found = [float(compiled(_copied(one))) for one in singles]
    expected = [float(reference(_copied(one))) for one in singles]
    exact = [float(reference(_copied(one, torch.float64))) for one in singles]
    given = [[float(t[0]) for (t,) in one] for one in singles]
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    every = [
        torch.zeros(len(found), device="cpu"),
        torch.tensor(found, dtype=kept, device="cpu"),
        torch.tensor(expected, dtype=kept, device="cpu"),
        torch.tensor(exact, dtype=torch.float64, device="cpu"),
    ]
    where = _where_unlike(every, max(1.0, *map(_finite_size, itertools.chain(*given))))
    if where is not None:
        return (
            f"it gives {found[where]:g} where torch gives {expected[where]:g}, "
            f"of {', '.join(f'{value:g}' for value in given[where])}"
        )
    count = sum(t.numel() for t in sample[0])
    ends = sum(t.numel() for t in _ends(sample)[0])
    mean = sum(map(_finite_size, exact[:ends])) / max(ends, 1)
    own, other = float(compiled(_copied(sample))), float(reference(_copied(sample)))
    alike = own == other or (math.isnan(own) and math.isnan(other))
    # Elements may cancel out each other, so a sum's size says little of its error.
    if alike or abs(own - other) <= 1e-4 * (abs(other) + count * mean) + 1e-30:
        return None
    return f"its sum is {own:g} where torch's is {other:g}"


def _ends(sample: list[list[torch.Tensor]]) -> list[list[torch.Tensor]]:
    return [[t[:2] for t in column] for column in sample]


def _finite_size(value: float) -> float:
    return abs(value) if math.isfinite(value) else 0.0


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
