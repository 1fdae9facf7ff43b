"""Compiled loops over a table of addresses by as many threads as torch has."""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["SHARE", "bounds", "cut_elements", "run"]

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
    cut: Callable[[Any, int], list[Any]],
) -> float:
    """Call a kernel over a table, by as many threads as torch has; return the sum of what they do.

    Args:
        kernel: given a table and numbers.
        table: int64, a column for each tensor, whose last number is that of its elements.
        numbers: the expression's.
        cut: ``(table, parts)``, returns tables that are nearly the same work.
    """
    import numpy

    values = numpy.array(numbers or (0.0,), dtype=numpy.float64)
    threads = torch.get_num_threads()
    size = int(table[-1].sum()) if threads > 1 else 0
    parts = min(threads, size // SHARE)
    if parts <= 1:
        return kernel(table, values)
    tables = cut(table, parts)
    pool = _threads.pool(threads)
    others = [pool.submit(kernel, part, values) for part in tables[1:]]
    own = kernel(tables[0], values)
    return own + sum(other.result() for other in others)


def bounds(ends: Any, parts: int) -> list[tuple[int, int]]:
    """Return where the parts of what ends there begin and end, in whole vectors of elements."""
    whole = int(ends[-1])
    return list(itertools.pairwise([whole * i // parts // 64 * 64 for i in range(parts)] + [whole]))


def cut_elements(table: Any, parts: int, columns: int, itemsize: int) -> list[Any]:
    """Return tables of nearly the same number of elements; tensors are cut where need be.

    Args:
        table: addresses, those of 0-d tensors, and sizes.
        parts: how many.
        columns: how many of the addresses are of elements.
        itemsize: bytes of an element.
    """
    import numpy

    sizes = table[-1]
    ends = numpy.cumsum(sizes)
    starts = ends - sizes
    found = []
    for low, high in bounds(ends, parts):
        rows = (starts < high) & (ends > low)
        part = table[:, rows].copy()
        skipped = numpy.maximum(low - starts[rows], 0)
        part[:columns] += skipped * itemsize
        part[-1] = numpy.minimum(ends[rows], high) - starts[rows] - skipped
        found.append(part)
    return found
