"""Tensors in compiled loops, by their addresses. To import it is to import numba."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

__all__ = ["asked", "elements", "put", "word"]


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


@intrinsic  # type: ignore[untyped-decorator]
def word(context: Any, address: Any) -> Any:
    """Return the integer at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.get_value_type(types.int64)
        return builder.load(builder.inttoptr(arguments[0], kind.as_pointer()))

    return types.int64(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def put(context: Any, address: Any, number: Any) -> Any:
    """Write an integer to an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.get_value_type(types.int64)
        builder.store(arguments[1], builder.inttoptr(arguments[0], kind.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def asked(context: Any, function: Any, handle: Any, found: Any) -> Any:
    """Call the function at an address: given a handle and where to write, it returns 0, or not."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = context.get_value_type(types.int64)
        kind = ir.FunctionType(context.get_value_type(types.int32), [word, word])
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return types.int32(types.int64, types.int64, types.int64), generate
