"""A thousand tensors read in one compiled loop: where each is, how large, and how it lies.

It is read anew at each step, for ``.data`` and ``.grad`` may be others; by Python that takes longer
than the arithmetic of small tensors. To import it is to import numba.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numba
import numpy
import torch

from regplug.backend.private_handles import Handles
from regplug.kernels.pointers import asked, put, word

__all__ = ["looked"]

_INTEGER = numba.int64
_KNOWN, _FUNCTIONS = numba.types.UniTuple(_INTEGER, 6), numba.types.UniTuple(_INTEGER, 7)


# Of integers alone, addresses too: arrays take numba a second longer.
@numba.njit(  # type: ignore[untyped-decorator]
    _INTEGER(*[_INTEGER] * 4, _KNOWN, _FUNCTIONS, _INTEGER),
    cache=True,
    error_model="numpy",
)
def _read_all(
    objects: Any, rows: Any, columns: Any, lists: Any, known: Any, functions: Any, table: Any
) -> Any:
    """Write addresses and sizes to a table; return 0.

    It is -1 where anything is not as a kernel needs it: Python then finds out what.

    Args:
        objects: where it is told for each list where the addresses of its objects begin.
        rows: how many objects a list has.
        columns: how many lists are of columns.
        lists: how many there are; the others are of 0-d tensors.
        known: what :class:`Handles` has: two places, layout, device type and types.
        functions: the addresses of torch's functions.
        table: where a row begins for each list, and one for sizes. Behind them is room for what
            the functions tell; whether any tensor has one element alone; and the lists' dtypes.
    """
    type_at, handle_at, strided, cpu, plain, parameter = known
    get_layout, get_device, get_dtype, get_dim, get_sizes, get_strides, get_address = functions
    told = table + 8 * rows * (lists + 1)
    dtypes = told + 64
    for row in range(rows):
        dim, sizes, strides, count, in_order = 0, 0, 0, 0, True
        for column in range(lists):
            tensor = word(word(objects + 8 * column) + 8 * row)
            kind = word(tensor + type_at)
            if kind != plain and kind != parameter:
                return -1
            handle = tensor + handle_at
            if asked(get_layout, handle, told) != 0 or word(told) != strided:
                return -1
            failed = asked(get_device, handle, told + 8) | asked(get_dtype, handle, told + 16)
            failed |= asked(get_dim, handle, told + 24) | asked(get_sizes, handle, told + 32)
            failed |= asked(get_strides, handle, told + 40) | asked(get_address, handle, told + 48)
            if failed != 0 or word(told + 8) != cpu:
                return -1
            dtype = word(told + 16)
            if row == 0:
                put(dtypes + 8 * column, dtype)
            if dtype != word(dtypes + 8 * column) or (column < columns and dtype != word(dtypes)):
                return -1
            own_dim, own_sizes, own_strides = word(told + 24), word(told + 32), word(told + 40)
            # As torch says what is contiguous: along a dimension of one any stride will do.
            own_count, own_order = 1, True
            for d in range(own_dim - 1, -1, -1):
                size = word(own_sizes + 8 * d)
                if size != 1:
                    own_order &= word(own_strides + 8 * d) == own_count
                    own_count *= size
            own_order |= own_count == 0
            address = word(told + 48)
            if address == 0 and own_count != 0:
                return -1
            put(table + 8 * (column * rows + row), address)
            if column >= columns:
                if own_count != 1:
                    return -1
                continue
            if own_count == 1:
                put(told + 56, 1)
            if column == 0:
                dim, sizes, strides = own_dim, own_sizes, own_strides
                count, in_order = own_count, own_order
                # Without a gap, in whatever order of dimensions.
                expected = count if in_order else 1
                while expected != count:
                    before = expected
                    for d in range(dim):
                        size = word(sizes + 8 * d)
                        if size != 1 and word(strides + 8 * d) == expected:
                            expected *= size
                            break
                    if expected == before:
                        return -1
                continue
            if own_dim != dim or own_order != in_order:
                return -1
            for d in range(dim):
                if word(own_sizes + 8 * d) != word(sizes + 8 * d):
                    return -1
                if not in_order and word(own_strides + 8 * d) != word(strides + 8 * d):
                    return -1
        put(table + 8 * (lists * rows + row), count)
    return 0


def looked(
    handles: Handles,
    columns: Sequence[Sequence[torch.Tensor]],
    scalars: Sequence[Sequence[torch.Tensor]],
) -> tuple[Any, list[torch.dtype]] | None:
    """Return where tensors are and how large, and the dtype of each column.

    Args:
        handles: how tensors are asked.
        columns: lists of tensors of equal length.
        scalars: further ones, of 0-d tensors.

    Returns:
        None where a kernel can't work on all of them, or where Python is to find out; else a table
        of int64, a row of addresses for each list, and one of sizes.
    """
    every = [*columns, *scalars]
    lists, rows = len(every), len(columns[0])
    objects = [numpy.fromiter(column, dtype=object, count=rows) for column in every]
    # What numpy calls the data of an array of objects are their addresses.
    places = numpy.array([_place(array) for array in objects], dtype=numpy.int64)
    memory = numpy.zeros((lists + 1) * rows + 8 + lists, dtype=numpy.int64)
    known = (handles.type_at, handles.handle_at, handles.strided, handles.cpu, *handles.types)
    if _read_all(
        _place(places), rows, len(columns), lists, known, handles.functions, _place(memory)
    ):
        return None
    table = memory[: (lists + 1) * rows].reshape(lists + 1, rows)
    told = memory[(lists + 1) * rows :].tolist()
    if told[7] and _any_negative(columns, table[-1] == 1):
        return None
    dtypes = [handles.dtypes.get(number) for number in told[8:]]
    return None if None in dtypes else (table, dtypes)  # type: ignore[return-value]


def _place(array: Any) -> int:
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def _any_negative(columns: Iterable[Sequence[torch.Tensor]], rows: Any) -> bool:
    """Whether any of these is what complex numbers are seen by, and negative where it is read."""
    chosen = numpy.flatnonzero(rows).tolist()
    return any(column[row].is_neg() for column in columns for row in chosen)
