"""Tensors in compiled loops, by their addresses. To import it is to import numba."""

from typing import Any

from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

__all__ = ["elements"]


@intrinsic  # type: ignore[untyped-decorator]
def elements(context: Any, dtype: Any, address: Any, size: Any) -> Any:
    """Return the ``size`` elements at an address as an array, which owns nothing.

    It is what ``numba.carray`` makes of a pointer, without the time that it takes to compile.
    """
    array = types.Array(dtype.dtype, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = context.get_data_type(dtype.dtype)
        itemsize = context.get_constant(types.intp, context.get_abi_sizeof(element))
        made = context.make_array(array)(context, builder)
        populate_array(
            made,
            data=builder.inttoptr(arguments[1], element.as_pointer()),
            shape=[arguments[2]],
            strides=[itemsize],
            itemsize=itemsize,
            meminfo=None,
        )
        return made._getvalue()

    return array(dtype, types.int64, types.int64), generate
