"""Tensors as functions of C take them: torch's stable C functions, which compiled loops can call.

They want a pointer to what C++ calls a tensor. It lies within the Python object, at a place that is
found out here, once, by objects that say what is to lie there. Where any of this is otherwise than
it is known to be, nothing is found, and tensors are asked by Python.
"""

import ctypes
import functools
import sys
from dataclasses import dataclass
from typing import Any

import torch

from regplug.backend.blocks import PLAIN

__all__ = ["Handles", "handles"]

# Where the names are; a test that renames one sees what is done without it.
_IMPLEMENTATION = "_cdata"
_PREFIX = "aoti_torch_get_"

_FUNCTIONS = ("layout", "device_type", "dtype", "dim", "sizes", "strides", "data_ptr")
_FLOATING = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Handles:
    """What a compiled loop needs to know to ask tensors by the addresses of their objects.

    Attributes:
        type_at: bytes from the beginning of an object to the address of its type.
        handle_at: bytes to what is the handle of a tensor.
        types: the addresses of the types that are plain tensors.
        functions: the addresses of functions ``(handle, where to)``, which return 0 if all is well:
            layout, device type, dtype, dimensions, sizes, strides, address.
        strided: the number of the layout of which all is said here.
        cpu: the number of that device type.
        dtypes: by torch's number of a dtype.
    """

    type_at: int
    handle_at: int
    types: tuple[int, ...]
    functions: tuple[int, ...]
    strided: int
    cpu: int
    dtypes: dict[int, torch.dtype]


@functools.cache
def handles() -> Handles | None:
    """Return how to ask tensors in compiled loops, None where that is not known."""
    if (sys.implementation.name, sys.byteorder) != ("cpython", "little"):
        return None
    try:
        return _found()
    except (AttributeError, OSError, ValueError):
        return None


def _found() -> Handles:
    samples = [
        torch.ones(2, 3),
        torch.nn.Parameter(torch.ones(5)),
        torch.ones(4, 3, dtype=torch.float64)[1:].T,
        torch.ones((), requires_grad=True),
    ]
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        raise ValueError("addresses are no words")
    type_at = _place([(sample, id(type(sample))) for sample in samples])
    handle_at = _place([(sample, getattr(sample, _IMPLEMENTATION)) for sample in samples])
    library = ctypes.CDLL(torch._C.__file__)
    functions = [getattr(library, _PREFIX + name) for name in _FUNCTIONS]
    for function in functions:
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        function.restype = ctypes.c_int32
    numbers: dict[torch.dtype, int] = {}
    shared: set[tuple[int, int]] = set()
    for sample in samples:
        layout, device, dtype, dim, sizes, strides, address = (
            _asked(function, id(sample) + handle_at) for function in functions
        )
        shape = tuple((ctypes.c_int64 * dim).from_address(sizes)) if dim else ()
        steps = tuple((ctypes.c_int64 * dim).from_address(strides)) if dim else ()
        told = (dim, shape, steps, address)
        if told != (sample.dim(), sample.shape, sample.stride(), sample.data_ptr()):
            raise ValueError("a function says something else than the tensor")
        numbers[sample.dtype] = dtype
        shared.add((layout, device))
    ((strided, cpu),) = shared
    dtypes = {number: dtype for dtype, number in numbers.items()}
    if set(dtypes.values()) != set(_FLOATING):
        raise ValueError("two dtypes have one number")
    return Handles(
        type_at,
        handle_at,
        tuple(map(id, PLAIN)),
        tuple([ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]),
        strided,
        cpu,
        dtypes,
    )


def _place(known: list[tuple[Any, int]]) -> int:
    """Return the one place in all of these objects at which the number lies that each is to have.

    Raises:
        ValueError: there is none, or more than one.
    """
    places = set(range(torch.Tensor.__basicsize__ // 8))
    for of, number in known:
        words = (ctypes.c_uint64 * len(range(0, type(of).__basicsize__, 8))).from_address(id(of))
        places &= {place for place in places if words[place] == number}
    (place,) = places
    return place * 8


def _asked(function: Any, handle: int) -> int:
    found = ctypes.c_int64(0)
    if function(handle, ctypes.byref(found)):
        raise ValueError("a function failed")
    return found.value
