"""Conditions, bounds, and choices by them: what they record."""

from typing import Any

import torch

from regplug.kernels.symbols import (
    Operation,
    Symbol,
    Tracing,
    UntraceableError,
    refuse_out,
)

__all__ = ["SELECTING"]


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
    refuse_out(named.pop("out", None))
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
        refuse_out(out)
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


SELECTING: dict[str, Operation] = {
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
}
