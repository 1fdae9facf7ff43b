"""Tables of addresses: what a kernel needs to know of the tensors that one call is about."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch

from regplug.backend.blocks import PLAIN, is_dense

__all__ = ["Table", "lie_alike"]

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
        addresses: of each column, those of its tensors.
        sizes: elements of each row.
        dtypes: of each column.
        changed: whether the last :meth:`read` found anything that was not so before.
        packed: what a backend made of it, for as long as nothing changes.
    """

    def __init__(self) -> None:
        self.addresses: list[list[int]] = []
        self.sizes: list[int] = []
        self.dtypes: tuple[torch.dtype, ...] = ()
        self.changed = True
        self.packed: Any = None
        self._bytes: list[int] = []

    def read(self, columns: Sequence[Sequence[torch.Tensor]]) -> bool:
        """Read the tensors of ``columns``; return whether a kernel can work on all of them.

        It can where all are plain tensors of one device, each column has one dtype, and the
        elements of a row lie in memory in the same order, without gaps.
        """
        if not all(map(_are_plain, columns)):
            return False
        addresses = [list(map(_address, column)) for column in columns]
        sizes = list(map(_bytes, columns[0]))
        dtypes = tuple([column[0].dtype for column in columns])
        self.changed = addresses != self.addresses or sizes != self._bytes or dtypes != self.dtypes
        # An address and a size that are known may have come to another tensor, of another dtype. No
        # other floating one is as wide as float32, so that what is usual need not be asked.
        if not self.changed:
            for column, dtype in zip(columns, dtypes, strict=True):
                if dtype is not torch.float32 and set(map(_dtype, column)) != {dtype}:
                    self.changed = True
        if self.changed and not self._learn(columns, addresses, sizes, dtypes):
            return False
        return all(all(map(_is_contiguous, column)) for column in columns) or all(
            map(lie_alike, *columns)
        )

    def _learn(
        self,
        columns: Sequence[Sequence[torch.Tensor]],
        addresses: list[list[int]],
        sizes: list[int],
        dtypes: tuple[torch.dtype, ...],
    ) -> bool:
        self.addresses = []
        devices = {columns[0][0].device}
        for column, dtype in zip(columns, dtypes, strict=True):
            if set(map(_dtype, column)) != {dtype} or set(map(_device, column)) != devices:
                return False
        counts = [list(map(_numel, column)) for column in columns]
        if any(count != counts[0] for count in counts):
            return False
        self.sizes, self._bytes, self.addresses, self.dtypes = counts[0], sizes, addresses, dtypes
        return True


def _are_plain(column: Sequence[torch.Tensor]) -> bool:
    return _plain.issuperset(map(type, column))


def lie_alike(*row: torch.Tensor) -> bool:
    """Whether the elements of these tensors lie in memory in the same order, without gaps."""
    strides = {tensor.stride() for tensor in row}
    return all(tensor.is_contiguous() for tensor in row) or (len(strides) == 1 and is_dense(row[0]))
