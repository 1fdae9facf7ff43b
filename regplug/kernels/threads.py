"""Compiled loops over a table of addresses by as many threads as torch has."""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["SHARE", "run"]

SHARE = 1 << 15
"""Elements that a thread should have at least; as torch's own loops."""


class _Threads:
    """Threads that stay, as many as torch has; anew in a forked process, which has none."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._of = (0, 0)

    def pool(self, threads: int) -> ThreadPoolExecutor:
        of = (os.getpid(), threads)
        if self._pool is None or self._of != of:
            self._pool, self._of = ThreadPoolExecutor(threads - 1, "regplug"), of
        return self._pool


_threads = _Threads()


def run(
    kernel: Callable[[Any, Any], float],
    table: Any,
    numbers: Sequence[float],
    columns: int,
    itemsize: int,
) -> float:
    """Call a kernel over a table, by as many threads as torch has; return the sum of what they do.

    Args:
        kernel: of :func:`compiled`.
        table: int64, a column for each tensor: addresses, those of 0-d tensors, and its size.
        numbers: the expression's.
        columns: how many of the addresses are of elements.
        itemsize: bytes of an element.
    """
    import numpy

    values = numpy.array(numbers or (0.0,), dtype=numpy.float64)
    threads = torch.get_num_threads()
    size = int(table[-1].sum()) if threads > 1 else 0
    parts = min(threads, size // SHARE)
    if parts <= 1:
        return kernel(table, values)
    tables = _parts(table, parts, columns, itemsize)
    pool = _threads.pool(threads)
    others = [pool.submit(kernel, part, values) for part in tables[1:]]
    own = kernel(tables[0], values)
    return own + sum(other.result() for other in others)


def _parts(table: Any, parts: int, columns: int, itemsize: int) -> list[Any]:
    """Return tables of nearly the same number of elements; tensors are cut where need be."""
    import numpy

    sizes = table[-1]
    ends = numpy.cumsum(sizes)
    starts = ends - sizes
    bounds = [int(ends[-1]) * i // parts // 64 * 64 for i in range(parts)] + [int(ends[-1])]
    found = []
    for low, high in itertools.pairwise(bounds):
        rows = (starts < high) & (ends > low)
        part = table[:, rows].copy()
        skipped = numpy.maximum(low - starts[rows], 0)
        part[:columns] += skipped * itemsize
        part[-1] = numpy.minimum(ends[rows], high) - starts[rows] - skipped
        found.append(part)
    return found
