"""The tables of a CPU's kernels: of many tensors by a compiled loop, else by Python."""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import torch

from regplug.backend.blocks import PLAIN
from regplug.backend.private_handles import handles
from regplug.kernels.tables import Table, Tensors

__all__ = ["CpuTable"]

_log = logging.getLogger("regplug")

_MANY = 48
"""Tensors from which it pays to have compiled what reads them: a second, once for a machine."""


@functools.cache
def _reader() -> Callable[[Tensors, Tensors], Any] | None:
    """Return what reads many tensors, None where that is left to Python."""
    known = handles()
    if known is None:
        return None
    start = time.perf_counter()
    try:
        from regplug.kernels.looked import looked
    except Exception as error:  # of numba: what uses it says so
        _log.info("tensors are read by Python: %s: %s", type(error).__name__, error)
        return None
    _log.info("compiled what reads tensors in %.1f s", time.perf_counter() - start)
    return functools.partial(looked, known)


def _is_other_number(scalar: Any) -> bool:
    """Whether this is a number that compiled loops don't read as it is kept: an integer, a half."""
    return type(scalar) in PLAIN and scalar.dtype not in (torch.float32, torch.float64)


class CpuTable(Table):
    """A table as numba's kernels want it: an array of addresses and sizes."""

    _doubles: Tensors = ()  # what a kernel reads must live as long as that

    def read(self, columns: Tensors, scalars: Tensors = ()) -> bool:
        """Read tensors; return whether a kernel can work on all of them: see :class:`Table`."""
        if any(_is_other_number(column[0]) for column in scalars):
            scalars = self._doubles = [[scalar.double() for scalar in c] for c in scalars]
        reader = _reader() if len(columns[0]) >= _MANY else None
        if reader is not None and (found := reader(columns, scalars)) is not None:
            self.packed, dtypes = found
            self.sizes = self.packed[-1]
            self.dtypes, self.of_scalars = (
                tuple(dtypes[: len(columns)]),
                tuple(dtypes[len(columns) :]),
            )
            self.addresses = []  # what Python may read next is new to it
            return True
        if not super().read(columns, scalars):
            return False
        if self.changed or self.packed is None:
            import numpy

            self.packed = numpy.array([*self.addresses, self.sizes], dtype=numpy.int64)
        return True
