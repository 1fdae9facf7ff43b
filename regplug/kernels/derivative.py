"""The derivative of a recorded sum: the gradient of a penalty that states its value alone.

It follows torch's autograd where a derivative is a matter of choice: 0 for ``abs`` at 0, 1 within
the closed range of ``clamp``, a half each where ``maximum`` has two alike.
"""

from collections.abc import Callable
from typing import TypeAlias

from regplug.kernels.expression import COMPARISONS, LOGICAL, Recording, arguments
from regplug.kernels.symbols import UntraceableError

__all__ = ["derivative"]

Rule: TypeAlias = Callable[["_Steps", int, tuple[int, ...]], tuple[int, ...]]
"""Given the place of a result, and of its arguments: the derivatives by each of these."""


class _Steps:
    """Further steps of a recording, by their names."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    def __call__(self, name: str, *places: int) -> int:
        return self.recording.step(name, *places)

    def number(self, value: float) -> int:
        return self.recording.number(value)

    def times(self, factor: float, place: int) -> int:
        return self("mul", self.number(factor), place)


def _by_pow(do: _Steps, y: int, args: tuple[int, ...]) -> tuple[int, ...]:
    x, exponent = args
    less = do("sub", exponent, do.number(1.0))
    return (do("mul", exponent, do("pow", x, less)), do("mul", y, do("log", x)))


def _by_extremum(comparison: str) -> Rule:
    def rule(do: _Steps, y: int, args: tuple[int, ...]) -> tuple[int, ...]:
        a, b = args
        half = do("where", do("eq", a, b), do.number(0.5), do.number(0.0))
        first = do("where", do(comparison, a, b), do.number(1.0), half)
        second = do("where", do(comparison, b, a), do.number(1.0), half)
        return first, second

    return rule


def _by_bound(comparison: str) -> Rule:
    def rule(do: _Steps, y: int, args: tuple[int, ...]) -> tuple[int, ...]:
        within, one, zero = do(comparison, *args), do.number(1.0), do.number(0.0)
        return do("where", within, one, zero), do("where", within, zero, one)

    return rule


_RULES: dict[str, Rule] = {
    "neg": lambda do, y, a: (do.number(-1.0),),
    "abs": lambda do, y, a: (do("sign", a[0]),),
    "sign": lambda do, y, a: (do.number(0.0),),
    "sqrt": lambda do, y, a: (do("div", do.number(0.5), y),),
    "rsqrt": lambda do, y, a: (do.times(-0.5, do("mul", y, do("square", y))),),
    "reciprocal": lambda do, y, a: (do("neg", do("square", y)),),
    "square": lambda do, y, a: (do.times(2.0, a[0]),),
    "exp": lambda do, y, a: (y,),
    "expm1": lambda do, y, a: (do("add", y, do.number(1.0)),),
    "log": lambda do, y, a: (do("reciprocal", a[0]),),
    "log1p": lambda do, y, a: (do("reciprocal", do("add", a[0], do.number(1.0))),),
    "tanh": lambda do, y, a: (do("sub", do.number(1.0), do("square", y)),),
    "sigmoid": lambda do, y, a: (do("mul", y, do("sub", do.number(1.0), y)),),
    "sin": lambda do, y, a: (do("cos", a[0]),),
    "cos": lambda do, y, a: (do("neg", do("sin", a[0])),),
    "sinh": lambda do, y, a: (do("cosh", a[0]),),
    "cosh": lambda do, y, a: (do("sinh", a[0]),),
    "add": lambda do, y, a: (do.number(1.0), do.number(1.0)),
    "sub": lambda do, y, a: (do.number(1.0), do.number(-1.0)),
    "mul": lambda do, y, a: (a[1], a[0]),
    "div": lambda do, y, a: (
        do("reciprocal", a[1]),
        do("neg", do("div", y, a[1])),
    ),
    "pow": _by_pow,
    "at_least": _by_bound("ge"),
    "at_most": _by_bound("le"),
    "maximum": _by_extremum("gt"),
    "minimum": _by_extremum("lt"),
}
_FLAT = (
    COMPARISONS | LOGICAL | {"isnan", "isfinite", "not", "number_of", "number", "scalar", "input"}
)


def derivative(recording: Recording, of: int, by: int) -> int:
    """Return the place of the derivative of the step at ``of`` by the one at ``by``.

    Its steps are added to the recording.
    """
    do = _Steps(recording)
    moving = _moving(recording, by)
    arriving: dict[int, list[int]] = {of: [do.number(1.0)]}
    for place in range(of, by, -1):
        if place not in arriving or place not in moving:
            continue
        whole = _sum(do, arriving.pop(place))
        step = recording.steps[place]
        name, args = step[0], arguments(step)
        if name in _FLAT:
            continue
        if name == "where":
            zero = do.number(0.0)
            found = [
                (args[1], do("where", args[0], whole, zero)),
                (args[2], do("where", args[0], zero, whole)),
            ]
        elif name in _RULES:
            parts = _RULES[name](do, place, args)
            found = [
                (arg, do("mul", whole, part))
                for arg, part in zip(args, parts, strict=True)
                if arg in moving
            ]
        else:
            raise UntraceableError(f"the derivative of {name} is not known")
        for arg, part in found:
            if arg in moving:
                arriving.setdefault(arg, []).append(part)
    return _sum(do, arriving.get(by) or [do.number(0.0)])


def _moving(recording: Recording, by: int) -> set[int]:
    found = {by}
    for place, step in enumerate(recording.steps):
        if any(argument in found for argument in arguments(step)):
            found.add(place)
    return found


def _sum(do: _Steps, places: list[int]) -> int:
    first, *others = places
    for place in others:
        first = do("add", first, place)
    return first
