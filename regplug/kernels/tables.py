"""Tables of addresses: what a kernel needs to know of the tensors that one call is about."""

from collections.abc import Sequence
from itertools import compress
from operator import attrgetter
from typing import Any, TypeAlias

import torch

from regplug.backend.blocks import PLAIN, is_dense

__all__ = ["Sizes", "Table", "Tensors", "lie_alike"]

Tensors: TypeAlias = Sequence[Sequence[torch.Tensor]]
"""Lists of tensors, of equal length."""

Sizes: TypeAlias = Any
"""Elements of each row: a list, or an array of integers."""

_address = torch.Tensor.data_ptr
_is_contiguous = torch.Tensor.is_contiguous
_numel = torch.Tensor.numel
_dtype = attrgetter("dtype")
_device = attrgetter("device")
_bytes = attrgetter("nbytes")
_plain = frozenset(PLAIN)


class Table:
    """The addresses and sizes of columns of tensors, remembered from one call to the next.

    Attributes:
        addresses: of each column, those of its tensors; then of the 0-d tensors.
        sizes: elements of each row.
        dtypes: of each column.
        of_scalars: those of the 0-d tensors.
        changed: whether the last :meth:`read` found anything that was not so before.
        packed: what a backend made of it, for as long as nothing changes.
    """

    def __init__(self) -> None:
        self.addresses: list[list[int]] = []
        self.sizes: Sizes = []
        self.dtypes: tuple[torch.dtype, ...] = ()
        self.of_scalars: tuple[torch.dtype, ...] = ()
        self.changed = True
        self.packed: Any = None
        self._bytes: list[int] = []
        self._single: list[int] = []

    def read(self, columns: Tensors, scalars: Tensors = ()) -> bool:
        """Read tensors; return whether a kernel can work on all of them.

        It can where all are plain tensors of one device, each column has one dtype, and the
        elements of a row lie in memory in the same order, without gaps.

        Args:
            columns: lists of equal length, the tensors of a row alike in shape.
            scalars: further ones, of 0-d tensors.
        """
        if not all(map(_are_plain, columns)) or not all(map(_are_plain, scalars)):
            return False
        addresses = [list(map(_address, column)) for column in (*columns, *scalars)]
        sizes = list(map(_bytes, columns[0]))
        dtypes = tuple([column[0].dtype for column in columns])
        of_scalars = tuple([column[0].dtype for column in scalars])
        known = self.addresses, self._bytes, self.dtypes, self.of_scalars
        self.changed = known != (addresses, sizes, dtypes, of_scalars)
        # An address and a size that are known may have come to another tensor, of another dtype. No
        # other floating one is as wide as float32, so that what is usual need not be asked.
        if not self.changed:
            for column, dtype in zip(columns, dtypes, strict=True):
                if dtype is not torch.float32 and set(map(_dtype, column)) != {dtype}:
                    self.changed = True
        if self.changed and not self._learn(columns, scalars, addresses, sizes):
            return False
        # One element lies in order even where it is read, through complex numbers, as a negative.
        if any(column[row].is_neg() for row in self._single for column in columns):
            return False
        if not all(map(_are_of_one_dtype, scalars)):
            return False
        return all(all(map(_is_contiguous, column)) for column in columns) or all(
            map(lie_alike, *columns)
        )

    def _learn(
        self, columns: Tensors, scalars: Tensors, addresses: list[list[int]], sizes: list[int]
    ) -> bool:
        self.addresses = []
        devices = {columns[0][0].device}
        for column in (*columns, *scalars):
            if (
                set(map(_dtype, column)) != {column[0].dtype}
                or set(map(_device, column)) != devices
            ):
                return False
        counts = list(map(_numel, columns[0]))
        if any(list(map(_numel, column)) != counts for column in columns[1:]):
            return False
        if any(set(map(_numel, column)) != {1} for column in scalars):
            return False
        # Memory that somebody took away: torch says so.
        if any(0 in own and 0 in compress(own, counts) for own in addresses):
            return False
        self._single = [row for row, count in enumerate(counts) if count == 1]
        self.sizes, self._bytes, self.addresses = counts, sizes, addresses
        self.dtypes = tuple([column[0].dtype for column in columns])
        self.of_scalars = tuple([column[0].dtype for column in scalars])
        return True


def _are_plain(column: Sequence[torch.Tensor]) -> bool:
    return _plain.issuperset(map(type, column))


def _are_of_one_dtype(column: Sequence[torch.Tensor]) -> bool:
    return len(set(map(_dtype, column))) == 1


def lie_alike(*row: torch.Tensor) -> bool:
    """Whether the elements of these tensors lie in memory in the same order, without gaps."""
    if any(tensor.is_neg() for tensor in row):
        return False
    strides = {tensor.stride() for tensor in row}
    return all(tensor.is_contiguous() for tensor in row) or (len(strides) == 1 and is_dense(row[0]))
