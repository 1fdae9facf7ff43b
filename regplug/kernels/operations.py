"""The operations of torch that a formula may use to be compiled, and what each of them records."""

from collections.abc import Callable
from typing import Any

import torch

from regplug.kernels.expression import SLOW
from regplug.kernels.symbols import Operation, Symbol, Tracing, UntraceableError, number_of

__all__ = ["OPERATIONS"]


def _is_total(x: Any) -> bool:
    return type(x) is Symbol and x.kind == "total"


def _refuse_out(out: Any) -> None:
    if out is not None:
        raise UntraceableError("it writes into memory of its own (out=…)")


def _unary(name: str, kind: str = "float") -> Operation:
    def record(tracing: Tracing, x: Any, *, out: Any = None) -> Symbol:
        _refuse_out(out)
        return tracing.result(name, tracing.place(x), kind=kind)

    return record


def _binary(name: str, kind: str = "float") -> Operation:
    def record(tracing: Tracing, x: Any, y: Any = None, *, other: Any = None) -> Symbol:
        y = other if y is None else y
        return tracing.result(name, tracing.place(x), tracing.place(y), kind=kind)

    return record


def _swapped(operation: Operation) -> Operation:
    return lambda tracing, x, y: operation(tracing, y, x)


def _same(tracing: Tracing, x: Symbol, *args: Any, **kwargs: Any) -> Symbol:
    return x


# --- sums and products, which totals have too --------------------------------------------------


def _scaled(tracing: Tracing, x: Any, alpha: Any) -> int:
    place = tracing.place(x)
    if type(alpha) in (int, float) and alpha == 1:
        return place
    return tracing.recording.step("mul", tracing.place(alpha), place)


def _sum_of(name: str) -> Operation:
    def record(
        tracing: Tracing,
        x: Any,
        y: Any = None,
        *,
        other: Any = None,
        alpha: Any = 1,
        out: Any = None,
    ) -> Symbol:
        _refuse_out(out)
        y = other if y is None else y
        if _is_total(x) or _is_total(y):
            return _sum_of_totals(tracing, name, x, y, alpha)
        return tracing.result(name, tracing.place(x), _scaled(tracing, y, alpha))

    return record


def _sum_of_totals(tracing: Tracing, name: str, x: Any, y: Any, alpha: Any) -> Symbol:
    if not _is_total(y) and number_of(y) == 0:
        return x  # type: ignore[no-any-return]
    if not _is_total(x) and number_of(x) == 0 and name == "add":
        return y  # type: ignore[no-any-return]
    if not (_is_total(x) and _is_total(y)):
        raise UntraceableError("it adds a number to a sum over all elements")
    step = tracing.recording.step
    factor = number_of(alpha)
    second = y.place if factor == 1 else step("mul", tracing.place(factor), y.place)
    return tracing.result(name, x.place, second, kind="total")


def _mul(tracing: Tracing, x: Any, y: Any = None, *, other: Any = None, out: Any = None) -> Symbol:
    _refuse_out(out)
    y = other if y is None else y
    if _is_total(y):
        x, y = y, x
    if _is_total(x):
        return tracing.result("mul", tracing.place(number_of(y)), x.place, kind="total")
    return tracing.result("mul", tracing.place(x), tracing.place(y))


def _div(tracing: Tracing, x: Any, y: Any = None, *, other: Any = None, out: Any = None) -> Symbol:
    _refuse_out(out)
    y = other if y is None else y
    if _is_total(x):
        return tracing.result("div", x.place, tracing.place(number_of(y)), kind="total")
    return tracing.result("div", tracing.place(x), tracing.place(y))


def _neg(tracing: Tracing, x: Symbol, *, out: Any = None) -> Symbol:
    _refuse_out(out)
    return tracing.result(
        "neg",
        x.place if _is_total(x) else tracing.place(x),
        kind=x.kind if _is_total(x) else "float",
    )


def _square(tracing: Tracing, x: Any, *, out: Any = None) -> Symbol:
    _refuse_out(out)
    return tracing.result("square", tracing.place(x))


def _pow(tracing: Tracing, x: Any, exponent: Any, *, out: Any = None) -> Symbol:
    _refuse_out(out)
    if type(exponent) is not Symbol:
        number, place = number_of(exponent), tracing.place(x)
        # Exponents are the formula's, and few: a kernel for each of the common ones.
        if number == 1:
            return tracing.result("mul", tracing.recording.number(1.0), place)
        if number == 2:
            return tracing.result("square", place)
        if number == 3:
            return tracing.result("mul", tracing.recording.step("square", place), place)
        if number == -1:
            return tracing.result("reciprocal", place)
        if number in (0.5, -0.5):
            return tracing.result("sqrt" if number > 0 else "rsqrt", place)
    return tracing.result("pow", tracing.place(x), tracing.place(exponent))


def _addc(inner: str) -> Operation:
    def record(
        tracing: Tracing, x: Any, a: Any, b: Any, *, value: Any = 1, out: Any = None
    ) -> Symbol:
        _refuse_out(out)
        product = tracing.result(inner, tracing.place(a), tracing.place(b))
        return tracing.result("add", tracing.place(x), _scaled(tracing, product, value))

    return record


def _lerp(tracing: Tracing, x: Any, end: Any, weight: Any, *, out: Any = None) -> Symbol:
    _refuse_out(out)
    start = tracing.place(x)
    way = tracing.recording.step("sub", tracing.place(end), start)
    part = tracing.recording.step("mul", tracing.place(weight), way)
    return tracing.result("add", start, part)


# --- choices -----------------------------------------------------------------------------------


def _truth(tracing: Tracing, x: Any) -> int:
    if type(x) is Symbol and x.kind == "truth":
        return x.place
    return tracing.recording.step("ne", tracing.place(x), tracing.recording.number(0.0))


def _where(tracing: Tracing, condition: Any, x: Any = None, y: Any = None) -> Symbol:
    if x is None or y is None:
        raise UntraceableError("it looks for indices (where)")
    if type(condition) is Symbol and condition.kind != "truth":
        raise UntraceableError("it chooses by what is not true or false")
    truth = _truth(tracing, condition)
    if all(type(t) is Symbol and t.kind == "truth" for t in (x, y)):
        both = tracing.recording.step("and", truth, x.place)
        other = tracing.recording.step("and", tracing.recording.step("not", truth), y.place)
        return tracing.result("or", both, other, kind="truth")
    return tracing.result("where", truth, tracing.place(x), tracing.place(y))


def _masked_fill(tracing: Tracing, x: Any, mask: Any, value: Any) -> Symbol:
    return _where(tracing, mask, value, x)


def _clamp(tracing: Tracing, x: Any, *bounds: Any, **named: Any) -> Symbol:
    _refuse_out(named.pop("out", None))
    low, high = (*bounds, None, None)[:2]
    low, high = named.get("min", low), named.get("max", high)
    place = tracing.place(x)
    if low is not None:
        place = tracing.recording.step("at_least", place, tracing.place(low))
    if high is not None:
        place = tracing.recording.step("at_most", place, tracing.place(high))
    return tracing.symbol(place)


def _extremum(name: str) -> Operation:
    def record(tracing: Tracing, x: Any, other: Any = None, *, out: Any = None) -> Symbol:
        _refuse_out(out)
        if other is None:
            raise UntraceableError(f"it looks for the {name} of all elements")
        return tracing.result(name, tracing.place(x), tracing.place(other))

    return record


def _relu(tracing: Tracing, x: Any, inplace: bool = False) -> Symbol:
    if inplace:
        raise UntraceableError("it changes its argument in place")
    return tracing.result("maximum", tracing.place(x), tracing.recording.number(0.0))


def _softshrink(tracing: Tracing, x: Any, lambd: Any = 0.5) -> Symbol:
    step = tracing.recording.step
    w, size = tracing.place(x), tracing.place(lambd)
    low = step("sub", w, size)
    high = step("add", w, size)
    zero = tracing.recording.number(0.0)
    # w·0 keeps the sign of zero, and NaN.
    inside = step("mul", w, zero)
    negative = step("where", step("lt", w, step("neg", size)), high, inside)
    return tracing.result("where", step("gt", w, size), low, negative)


def _nan_to_num(
    tracing: Tracing, x: Any, nan: Any = None, posinf: Any = None, neginf: Any = None
) -> Symbol:
    step, largest = tracing.recording.step, torch.finfo(tracing.dtype).max
    place = tracing.place(x)
    limits = [
        ("gt", largest, largest if posinf is None else posinf),
        ("lt", -largest, -largest if neginf is None else neginf),
    ]
    for comparison, limit, value in limits:
        beyond = step(comparison, place, tracing.recording.number(limit))
        place = step("where", beyond, tracing.place(value), place)
    is_nan = step("isnan", place)
    return tracing.result("where", is_nan, tracing.place(0.0 if nan is None else nan), place)


def _softplus(tracing: Tracing, x: Any, beta: Any = 1, threshold: Any = 20) -> Symbol:
    step, factor = tracing.recording.step, tracing.place(beta)
    w = tracing.place(x)
    scaled = step("mul", w, factor)
    smooth = step("div", step("log1p", step("exp", scaled)), factor)
    return tracing.result("where", step("gt", scaled, tracing.place(threshold)), w, smooth)


def _logical(name: str) -> Operation:
    def record(tracing: Tracing, x: Any, y: Any) -> Symbol:
        if not all(type(t) is Symbol and t.kind == "truth" for t in (x, y)):
            raise UntraceableError(f"it takes bits together ({name})")
        return tracing.result(name, x.place, y.place, kind="truth")

    return record


def _not(tracing: Tracing, x: Any) -> Symbol:
    if x.kind != "truth":
        raise UntraceableError("it inverts bits")
    return tracing.result("not", x.place, kind="truth")


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


_UNARY = (SLOW - {"pow"}) | {"abs", "sign", "sqrt", "rsqrt", "reciprocal"}

OPERATIONS: dict[str, Callable[..., Any]] = {
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
    "add": _sum_of("add"),
    "sub": _sum_of("sub"),
    "subtract": _sum_of("sub"),
    "__radd__": _swapped(_sum_of("add")),
    "__rsub__": _swapped(_sum_of("sub")),
    "rsub": _swapped(_sum_of("sub")),
    "mul": _mul,
    "multiply": _mul,
    "__rmul__": _mul,
    "div": _div,
    "divide": _div,
    "true_divide": _div,
    "__rdiv__": _swapped(_div),
    "__rtruediv__": _swapped(_div),
    "neg": _neg,
    "negative": _neg,
    "square": _square,
    "pow": _pow,
    "__rpow__": _swapped(_pow),
    "addcmul": _addc("mul"),
    "addcdiv": _addc("div"),
    "lerp": _lerp,
    "where": _where,
    "masked_fill": _masked_fill,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": lambda tracing, x, low: _clamp(tracing, x, low, None),
    "clamp_max": lambda tracing, x, high: _clamp(tracing, x, None, high),
    "maximum": _extremum("maximum"),
    "minimum": _extremum("minimum"),
    "max": _extremum("maximum"),
    "min": _extremum("minimum"),
    "relu": _relu,
    "softshrink": _softshrink,
    "softplus": _softplus,
    "nan_to_num": _nan_to_num,
    "__and__": _logical("and"),
    "__or__": _logical("or"),
    "logical_and": _logical("and"),
    "logical_or": _logical("or"),
    "__invert__": _not,
    "logical_not": _not,
    "bitwise_not": _not,
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
