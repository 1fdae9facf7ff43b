"""Numbers as integers of the same order, in compiled loops. To import it is to import numba.

Of integers a loop finds the largest in vectors; of floating-point numbers it does not.
"""

from typing import Any

from numba import types
from numba.extending import intrinsic

__all__ = ["number", "ordered"]

_INTEGERS = {types.float32: types.int32, types.float64: types.int64}
_NUMBERS = {integer: number for number, integer in _INTEGERS.items()}


def _turned(builder: Any, bits: Any, width: int) -> Any:
    # All bits but the sign are inverted where it is set: of two negative numbers the one with the
    # larger bits is the smaller one.
    negative = builder.ashr(bits, bits.type(width - 1))
    return builder.xor(bits, builder.and_(negative, bits.type((1 << (width - 1)) - 1)))


@intrinsic  # type: ignore[untyped-decorator]
def ordered(context: Any, number: Any) -> Any:
    """Return an integer that is larger for larger numbers; a NaN is to be without a sign."""
    integer = _INTEGERS[number]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], context.get_value_type(integer))
        return _turned(builder, bits, integer.bitwidth)

    return integer(number), generate


@intrinsic  # type: ignore[untyped-decorator]
def number(context: Any, integer: Any) -> Any:
    """Return the number that :func:`ordered` gives an integer for."""
    found = _NUMBERS[integer]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = _turned(builder, arguments[0], integer.bitwidth)
        return builder.bitcast(bits, context.get_value_type(found))

    return found(integer), generate
