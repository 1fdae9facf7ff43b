"""The operations of torch that a formula may use to be compiled, and what each of them records."""

from typing import Any

import torch

from regplug.kernels.arithmetic import ARITHMETIC
from regplug.kernels.expression import SLOW
from regplug.kernels.selecting import SELECTING
from regplug.kernels.symbols import Operation, Symbol, Tracing, UntraceableError, refuse_out

__all__ = ["OPERATIONS"]


def _unary(name: str, kind: str = "float") -> Operation:
    def record(tracing: Tracing, x: Any, *, out: Any = None) -> Symbol:
        refuse_out(out)
        return tracing.result(name, tracing.place(x), kind=kind)

    return record


def _binary(name: str, kind: str = "float") -> Operation:
    def record(tracing: Tracing, x: Any, y: Any = None, *, other: Any = None) -> Symbol:
        y = other if y is None else y
        return tracing.result(name, tracing.place(x), tracing.place(y), kind=kind)

    return record


def _same(tracing: Tracing, x: Symbol, *args: Any, **kwargs: Any) -> Symbol:
    return x


# --- casts, constants, sums --------------------------------------------------------------------


def _cast(dtypes: tuple[torch.dtype, ...]) -> Operation:
    def record(tracing: Tracing, x: Symbol) -> Symbol:
        if tracing.dtype not in dtypes:
            raise UntraceableError("it computes in another dtype")
        return tracing.symbol(tracing.place(x)) if x.kind == "truth" else x

    return record


def _clone(tracing: Tracing, x: Symbol, **kwargs: Any) -> Symbol:
    return tracing.symbol(tracing.place(x))


def _to(tracing: Tracing, x: Symbol, *args: Any, **kwargs: Any) -> Symbol:
    wanted = [*args, kwargs.get("dtype"), kwargs.get("device")]
    for target in wanted:
        if isinstance(target, torch.dtype) and target != tracing.dtype:
            raise UntraceableError("it computes in another dtype")
        if isinstance(target, str | torch.device) and torch.device(target) != tracing.device:
            raise UntraceableError("it goes to another device")
        if isinstance(target, torch.Tensor) and type(target) is not Symbol:
            raise UntraceableError("it uses a tensor of its own")
    return tracing.symbol(tracing.place(x)) if x.kind == "truth" else x


def _filled(value: float) -> Operation:
    def record(tracing: Tracing, x: Symbol, *args: Any, **kwargs: Any) -> Symbol:
        if (kwargs.get("dtype") or tracing.dtype) != tracing.dtype:
            raise UntraceableError("it computes in another dtype")
        return tracing.symbol(tracing.recording.number(value))

    return record


def _full_like(tracing: Tracing, x: Symbol, fill_value: Any, **kwargs: Any) -> Symbol:
    return tracing.symbol(tracing.place(fill_value))


def _new_number(value: float | None) -> Operation:
    def record(tracing: Tracing, x: Symbol, given: Any, *args: Any, **kwargs: Any) -> Symbol:
        if value is not None and given not in ((), []):
            raise UntraceableError("it makes a tensor of a shape of its own")
        return tracing.symbol(tracing.place(given if value is None else value))

    return record


def _total(tracing: Tracing, x: Symbol, *args: Any, dtype: Any = None, **kwargs: Any) -> Symbol:
    if args or kwargs:
        raise UntraceableError("it sums over dimensions")
    if dtype not in (None, tracing.dtype):
        raise UntraceableError("it computes in another dtype")
    return tracing.symbol(tracing.place(x), "total")


def _norm(tracing: Tracing, x: Symbol, *args: Any, **kwargs: Any) -> Symbol:
    order, *others = (*args, None)
    order = kwargs.pop("p", kwargs.pop("ord", order))
    if order != 1 or any(other not in (None, False) for other in (*others, *kwargs.values())):
        raise UntraceableError("it takes a norm of all elements")
    return tracing.symbol(tracing.recording.step("abs", tracing.place(x)), "total")


def _flat(tracing: Tracing, x: Symbol, *args: Any) -> Symbol:
    if args not in ((), (-1,)):
        raise UntraceableError("it looks at the shape")
    return x


_UNARY = (SLOW - {"pow"}) | {"abs", "sign", "sqrt", "rsqrt", "reciprocal", "square"}

OPERATIONS: dict[str, Operation] = {
    **ARITHMETIC,
    **SELECTING,
    **{name: _unary(name) for name in _UNARY},
    **{name: _unary(name, "truth") for name in ("isnan", "isfinite")},
    **{name: _binary(name, "truth") for name in ("gt", "ge", "lt", "le", "eq", "ne")},
    "__eq__": _binary("eq", "truth"),
    "__ne__": _binary("ne", "truth"),
    "sgn": _unary("sign"),
    "absolute": _unary("abs"),
    "special_expit": _unary("sigmoid"),
    "special_log1p": _unary("log1p"),
    "special_expm1": _unary("expm1"),
    "detach": _same,
    "clone": _clone,
    "contiguous": _same,
    "positive": _same,
    "float": _cast((torch.float32,)),
    "double": _cast((torch.float64,)),
    "to": _to,
    "type_as": _to,
    "zeros_like": _filled(0.0),
    "ones_like": _filled(1.0),
    "full_like": _full_like,
    "new_zeros": _new_number(0.0),
    "new_ones": _new_number(1.0),
    "new_tensor": _new_number(None),
    "sum": _total,
    "norm": _norm,
    "linalg_vector_norm": _norm,
    "flatten": _flat,
    "ravel": _flat,
    "view": _flat,
    "reshape": _flat,
}
