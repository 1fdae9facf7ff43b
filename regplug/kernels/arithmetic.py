"""Sums, products and powers of symbols: what they record. Sums over all elements add up, too."""

from typing import Any

from regplug.kernels.symbols import (
    Operation,
    Symbol,
    Tracing,
    UntraceableError,
    number_of,
    refuse_out,
)

__all__ = ["ARITHMETIC"]


def _is_total(x: Any) -> bool:
    return type(x) is Symbol and x.kind == "total"


def _is_truth(x: Any) -> bool:
    return isinstance(x, bool) or (type(x) is Symbol and x.kind == "truth")


def _swapped(operation: Operation) -> Operation:
    return lambda tracing, x, y: operation(tracing, y, x)


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
        refuse_out(out)
        y = other if y is None else y
        if _is_truth(x) and _is_truth(y):
            raise UntraceableError("it adds truths, of which two are one")
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
    refuse_out(out)
    y = other if y is None else y
    if _is_total(y):
        x, y = y, x
    if _is_total(x):
        return tracing.result("mul", tracing.place(number_of(y)), x.place, kind="total")
    return tracing.result("mul", tracing.place(x), tracing.place(y))


def _div(tracing: Tracing, x: Any, y: Any = None, *, other: Any = None, out: Any = None) -> Symbol:
    refuse_out(out)
    y = other if y is None else y
    if _is_total(x):
        return tracing.result("div", x.place, tracing.place(number_of(y)), kind="total")
    return tracing.result("div", tracing.place(x), tracing.place(y))


def _neg(tracing: Tracing, x: Symbol, *, out: Any = None) -> Symbol:
    refuse_out(out)
    return tracing.result(
        "neg",
        x.place if _is_total(x) else tracing.place(x),
        kind=x.kind if _is_total(x) else "float",
    )


def _pow(tracing: Tracing, x: Any, exponent: Any, *, out: Any = None) -> Symbol:
    refuse_out(out)
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
        refuse_out(out)
        # In torch's order: what overflows, and what does not, is the same.
        first = _scaled(tracing, a, value)
        product = tracing.recording.step(inner, first, tracing.place(b))
        return tracing.result("add", tracing.place(x), product)

    return record


def _lerp(tracing: Tracing, x: Any, end: Any, weight: Any, *, out: Any = None) -> Symbol:
    refuse_out(out)
    step = tracing.recording.step
    start, last, share = tracing.place(x), tracing.place(end), tracing.place(weight)
    way = step("sub", last, start)

    def from_start() -> int:
        return step("add", start, step("mul", share, way))

    def from_end() -> int:
        rest = step("sub", tracing.recording.number(1.0), share)
        return step("sub", last, step("mul", way, rest))

    # As torch does it, from the end that is nearer.
    if type(weight) is not Symbol:
        return tracing.symbol(from_start() if abs(number_of(weight)) < 0.5 else from_end())
    near = step("lt", step("abs", share), tracing.recording.number(0.5))
    return tracing.result("where", near, from_start(), from_end())


ARITHMETIC: dict[str, Operation] = {
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
    "pow": _pow,
    "__rpow__": _swapped(_pow),
    "addcmul": _addc("mul"),
    "addcdiv": _addc("div"),
    "lerp": _lerp,
}
