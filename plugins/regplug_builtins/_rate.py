"""A dropout rate that can move under ``torch.compile``, with no module swapped.

A float in ``nn.Dropout.p`` is a constant of the compiled graph: each new value compiles anew, and
after eight torch gives up. :class:`Rate` is a 0-d tensor in its place. To eager code it is as good
as the float; in a traced graph, where torch's own dropouts would ask it for its number and break
the graph, it puts the same dropouts there, written with the rate as a tensor.
"""

import math
import numbers
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regplug import refuse_capture
from regplug_builtins._traced import TRACED

__all__ = ["Rate"]


class Rate(Tensor):
    """A probability: a 0-d float32 tensor on the CPU that compiled graphs take as an input.

    Code that is not compiled can do with it what it can do with a float, but ``isinstance`` says
    no and ``json`` takes none: write ``float(rate)``. Copies, pickles and checkpoints hold floats.

    Args:
        value: the rate, within [0, 1].

    >>> rate = Rate(0.5)
    >>> dropout = torch.nn.Dropout(0.1)
    >>> dropout.p = rate
    >>> rate.set(0.1)
    >>> dropout, float(rate), rate > 0.05, rate * 3, round(rate)
    (Dropout(p=0.1, inplace=False), 0.1, True, 0.30000000000000004, 0)
    """

    tensor: Tensor
    _value: float

    def __new__(cls, value: float) -> "Rate":
        tensor = torch.tensor(value, dtype=torch.float32, device="cpu")
        self = tensor.as_subclass(cls)
        self._value, self.tensor = value, tensor  # both tensors share one memory
        return self

    @property
    def value(self) -> float:
        """The rate now.

        Raises:
            UnsupportedError: a CUDA graph is being captured, in which it would stay what it is.
        """
        refuse_capture(
            "the rate of this step, whatever its schedule says",
            "attach a constant rate, or detach() the session before the capture",
        )
        return self._value

    def set(self, value: float) -> None:
        """Set the rate, here and in every graph that was compiled with it."""
        self._value = value
        self.tensor.fill_(value)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Hand functions the number, methods the plain tensor; put our own dropouts in graphs."""
        compiling = torch.compiler.is_compiling()
        if compiling:
            if func in _COMPARISONS:
                return _COMPARISONS[func](*args)
            func = TRACED.get(func, func)
        # A float is what functions were written for, and rounds no rate to float32. Other types
        # than plain tensors (the proxies of torch.fx, say) are to see that it is no constant.
        as_number = not (compiling or isinstance(args[0] if args else None, Rate)) and all(
            kind is cls for kind in types
        )
        if as_number:
            args = [x.value if isinstance(x, Rate) else _plain(x) for x in args]
            kwargs = {k: x.value if isinstance(x, Rate) else x for k, x in (kwargs or {}).items()}
        else:
            args = [_plain(x) for x in args]
            kwargs = {k: _plain(x) for k, x in (kwargs or {}).items()}
        return func(*args, **kwargs)

    def item(self) -> float:
        """Return the rate as a float."""
        return self.value

    def tolist(self) -> float:  # type: ignore[override]
        """Return the rate as a float."""
        return self.value

    def __float__(self) -> float:
        return self.value

    def __int__(self) -> int:
        return int(self.value)

    def __complex__(self) -> complex:
        return complex(self.value)

    def __bool__(self) -> bool:
        return bool(self != 0)

    def __trunc__(self) -> int:
        return math.trunc(self.value)

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.value, digits)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        import numpy as np  # it is numpy that asks

        return np.array(self.value, dtype=dtype)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()]

    # Dynamo may compile these by themselves, between graph breaks. So each states its operation:
    # which function came to __torch_function__ is not guarded on for the slots of operators.

    def __lt__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value < other
        known = _bounds(other)
        return torch.lt(self.tensor, other) if known is None else known > 0

    def __gt__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value > other
        known = _bounds(other)
        return torch.gt(self.tensor, other) if known is None else known < 0

    def __le__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value <= other
        known = _bounds(other)
        return torch.le(self.tensor, other) if known is None else known > 0

    def __ge__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value >= other
        known = _bounds(other)
        return torch.ge(self.tensor, other) if known is None else known < 0

    def __eq__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value == other
        return torch.eq(self.tensor, other) if _bounds(other) is None else False

    def __ne__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value != other
        return torch.ne(self.tensor, other) if _bounds(other) is None else True

    def __add__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value + other
        return torch.add(self.tensor, other)

    def __radd__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return other + self.value
        return torch.add(self.tensor, other)

    def __sub__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value - other
        return torch.sub(self.tensor, other)

    def __rsub__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return other - self.value
        return torch.rsub(self.tensor, other)

    def __mul__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value * other
        return torch.mul(self.tensor, other)

    def __rmul__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return other * self.value
        return torch.mul(self.tensor, other)

    def __truediv__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value / other
        return torch.div(self.tensor, other)

    def __rtruediv__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return other / self.value
        return torch.reciprocal(self.tensor) * other

    def __floordiv__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value // other
        return torch.floor_divide(self.tensor, other)

    def __rfloordiv__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return other // self.value
        return torch.floor(torch.reciprocal(self.tensor) * other)

    def __mod__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value % other
        return torch.remainder(self.tensor, other)

    def __rmod__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return other % self.value
        return torch.remainder(other, self.tensor)

    def __pow__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value**other
        return torch.pow(self.tensor, other)

    def __rpow__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return other**self.value
        return torch.pow(other, self.tensor)

    # A float is never changed in place.
    __iadd__, __isub__, __imul__, __itruediv__ = __add__, __sub__, __mul__, __truediv__
    __ifloordiv__, __imod__ = __floordiv__, __mod__
    __ipow__ = __pow__  # type: ignore[assignment]

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __neg__(self) -> Any:
        return -self.value if not torch.compiler.is_compiling() else torch.neg(self.tensor)

    def __pos__(self) -> Any:
        return self.value if not torch.compiler.is_compiling() else self.tensor.clone()

    def __abs__(self) -> Any:
        return +self

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(self._value)

    def __format__(self, spec: str) -> str:
        return format(self._value, spec)

    def __deepcopy__(self, memo: Any) -> float:
        return self._value

    def __reduce_ex__(self, protocol: Any) -> Any:
        return float, (self._value,)


def _plain(x: Any) -> Any:
    """Return ``x`` with the plain tensor for each rate in it."""
    if isinstance(x, Rate):
        return x.tensor
    return type(x)(map(_plain, x)) if type(x) in (list, tuple) else x


def _bounds(other: Any) -> int | None:
    """Return 1 if any rate lies below ``other``, −1 if above, None if it depends on the rate.

    At 0 and 1 exactly code takes shortcuts. The traced graph is the general one for rates in
    between, which gives the same at both ends.
    """
    if isinstance(other, int | float):
        if other <= 0:
            return -1
        if other >= 1:
            return 1
    return None


# A traced operator arrives as one of these.
_COMPARISONS: dict[Any, Callable[..., Any]] = {
    function: getattr(Rate, f"__{name}__")
    for name in ("lt", "le", "eq", "ne", "gt", "ge")
    for function in (getattr(Tensor, f"__{name}__"), getattr(operator, name))
}

numbers.Real.register(Rate)
