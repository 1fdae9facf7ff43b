"""Tensors in compiled loops, by their addresses. To import it is to import numba."""

from typing import Any

import numba
from numba import types
from numba.extending import intrinsic

__all__ = ["elements"]


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(context: Any, dtype: Any, address: Any) -> Any:
    pointer = types.CPointer(dtype.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[1], context.get_value_type(signature.return_type))

    return pointer(dtype, types.int64), generate


@numba.njit(error_model="numpy", nogil=True, inline="always")  # type: ignore[untyped-decorator]
def elements(dtype: Any, address: int, size: int) -> Any:
    """Return the ``size`` elements at an address as an array."""
    return numba.carray(_pointer(dtype, address), size)
