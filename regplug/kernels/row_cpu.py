"""Expressions of rows compiled by numba: one call for all rows of all tensors."""

import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from regplug.kernels.row_lines import SHAPES
from regplug.kernels.row_loops import OWN, source_of
from regplug.kernels.row_symbols import RowExpression
from regplug.kernels.row_tables import TABLES, Geometries, RowRun
from regplug.kernels.sources import executed
from regplug.kernels.threads import bounds, run

__all__ = ["compiled", "launching"]

_address = torch.Tensor.data_ptr

_log = logging.getLogger("regplug")

_TOGETHER, _COPIED = 16, 1 << 15
"""Rows that are copied at a time, and how many elements of a tensor these are at most."""


@functools.cache
def compiled(
    expression: RowExpression, dtype: torch.dtype, scalars: tuple[torch.dtype, ...]
) -> Callable[[Any, Any], float]:
    """Return the kernel of an expression: ``(table, numbers)``."""
    import numpy

    start = time.perf_counter()
    function: Callable[[Any, Any], float] = executed(source_of(expression, dtype, scalars))[
        "all_tensors"
    ]
    height = expression.columns + len(OWN) + len(SHAPES)
    empty = numpy.zeros((height, 0), dtype=numpy.int64)
    function(empty, numpy.zeros(max(expression.numbers, 1)))
    seconds = time.perf_counter() - start
    _log.info("compiled a kernel of rows for %s on the CPU in %.1f s", dtype, seconds)
    return function


def launching(
    expression: RowExpression, dtypes: Sequence[torch.dtype], scalars: tuple[torch.dtype, ...]
) -> RowRun:
    """Return what executes an expression for columns, and 0-d tensors, of these dtypes."""
    import numpy

    function = compiled(expression, dtypes[0], scalars)
    lie: dict[Geometries, Any] = {}

    def execute(
        numbers: Sequence[float],
        geometries: Geometries,
        columns: Sequence[Sequence[torch.Tensor]],
        scalars: Sequence[Sequence[torch.Tensor]],
    ) -> None:
        shapes = lie.get(geometries)
        if shapes is None:
            if len(lie) >= TABLES:
                lie.clear()
            rows = [_own(geometry) + geometry for geometry in geometries]
            shapes = lie[geometries] = numpy.array(rows, dtype=numpy.int64).T
        addresses = [list(map(_address, column)) for column in (*columns, *scalars)]
        table = numpy.concatenate([numpy.array(addresses, dtype=numpy.int64), shapes])
        run(function, table, numbers, functools.partial(_cut_rows, columns=len(addresses)))

    return execute


def _own(geometry: tuple[int, ...]) -> tuple[int, ...]:
    size, inner, _, near, apart, groups, _ = geometry
    if size == inner and near == 1:
        return (0, groups, 0)
    # Neighbours in memory are of as many rows; other rows share nothing.
    return (0, groups, max(1, min(_TOGETHER, _COPIED // size)) if apart < near else 1)


def _cut_rows(table: Any, parts: int, columns: int) -> list[Any]:
    """Return tables of nearly the same number of elements; tensors are cut between rows."""
    import numpy

    first, last, _, size = table[columns : columns + 4]
    ends = numpy.cumsum(table[-1])
    starts = ends - table[-1]
    found = []
    for low, high in bounds(ends, parts):
        from_, to = (numpy.clip(-((starts - bound) // size), first, last) for bound in (low, high))
        rows = to > from_
        part = table[:, rows].copy()
        part[columns], part[columns + 1] = from_[rows], to[rows]
        found.append(part)
    return found
