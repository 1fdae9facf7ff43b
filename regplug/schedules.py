r"""Strength (or a dropout rate) over time.

A schedule is a callable from the number of completed real optimizer steps to a float; the first
step is 0. Any such callable serves; the ones here can also be written inside a spec string, and
know their bounds, so that a wrong one fails when it is made and not at step 10,000.

>>> from regplug.schedules import linear, warmup
>>> ramp = linear(0.5, 0.1, steps=1000)
>>> ramp(0), ramp(500), ramp(5000)
(0.5, 0.3, 0.1)
>>> warmup(1e-4, steps=10)(5)
5e-05
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from regplug.errors import SpecError
from regplug.values import checked, number, shown, whole

__all__ = [
    "Schedule",
    "ScheduleLike",
    "constant",
    "cosine",
    "exponential",
    "linear",
    "piecewise",
    "warmup",
]


class Schedule:
    """Base of the schedules here. Calling one with a step gives the value at that step."""

    def __call__(self, step: int) -> float:
        """Return the value at ``step``, the number of completed real steps (0 for the first)."""
        raise NotImplementedError

    def bounds(self) -> tuple[float, float]:
        """Return the smallest and the largest value that the schedule ever takes."""
        raise NotImplementedError


ScheduleLike: TypeAlias = float | Callable[[int], float]


@dataclass(frozen=True, repr=False)
class _Ramp(Schedule):
    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", number("start", self.start))
        object.__setattr__(self, "end", number("end", self.end))
        object.__setattr__(self, "steps", whole(self.steps))

    def __repr__(self) -> str:
        start, end = shown(self.start), shown(self.end)
        return f"{type(self).__name__}({start}, {end}, steps={self.steps})"

    def bounds(self) -> tuple[float, float]:
        return min(self.start, self.end), max(self.start, self.end)

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end
        # Rounding may carry a value past the end that it moves to, and so out of its range.
        low, high = self.bounds()
        return min(max(self._between(step / self.steps), low), high)

    def _between(self, share: float) -> float:
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class constant(Schedule):  # noqa: N801 - schedules read as functions
    """The same value at every step.

    Args:
        value: a finite number.

    Raises:
        SpecError: it is no number, or not finite.

    >>> constant(0.1)(1000)
    0.1
    """

    value: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", number("value", self.value))

    def __repr__(self) -> str:
        return f"constant({shown(self.value)})"

    def bounds(self) -> tuple[float, float]:
        return self.value, self.value

    def __call__(self, step: int) -> float:
        return self.value


class linear(_Ramp):  # noqa: N801
    """``start + (end − start)·min(t/steps, 1)``.

    Args:
        start: the value at step 0.
        end: the value from ``steps`` on.
        steps: how many real optimizer steps the way takes, at least 1.

    Raises:
        SpecError: an argument is not finite, or ``steps`` is not a whole number of at least 1.

    >>> linear(0.0, 1.0, steps=4)(1)
    0.25
    """

    def _between(self, share: float) -> float:
        return self.start + (self.end - self.start) * share


class cosine(_Ramp):  # noqa: N801
    """``end + (start − end)·(1 + cos(π·min(t/steps, 1)))/2``: flat at both ends.

    Args:
        start: the value at step 0.
        end: the value from ``steps`` on.
        steps: how many real optimizer steps the way takes, at least 1.

    Raises:
        SpecError: an argument is not finite, or ``steps`` is not a whole number of at least 1.

    References:
        Ilya Loshchilov, Frank Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
        2017, https://arxiv.org/abs/1608.03983 (one period of it).

    >>> round(cosine(1.0, 0.0, steps=2)(1), 12)
    0.5
    """

    def _between(self, share: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * share)) / 2


class exponential(_Ramp):  # noqa: N801
    """``start·(end/start)^min(t/steps, 1)``: the same factor at each step.

    Args:
        start: the value at step 0, above 0.
        end: the value from ``steps`` on, above 0.
        steps: how many real optimizer steps the way takes, at least 1.

    Raises:
        SpecError: ``start`` or ``end`` is not above 0, or ``steps`` is not a whole number ≥ 1.

    >>> exponential(1.0, 0.01, steps=2)(1)
    0.1
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start <= 0 or self.end <= 0:
            raise SpecError(f"start and end of an exponential must be above 0, got {self!r}")

    def _between(self, share: float) -> float:
        return float(self.start ** (1 - share) * self.end**share)


@dataclass(frozen=True, repr=False, eq=False)
class piecewise(Schedule):  # noqa: N801
    """Constant between the given steps: the value of the largest key that is not above the step.

    Args:
        values: a mapping of first step to value; it must say what holds at step 0.

    Raises:
        SpecError: no key is 0, a key is not a whole number of at least 0, a value is not finite.

    >>> late = piecewise({0: 0.0, 500: 0.2})
    >>> late(499), late(500)
    (0.0, 0.2)
    """

    values: Mapping[int, float]

    def __post_init__(self) -> None:
        if not isinstance(self.values, Mapping) or not self.values:
            raise SpecError(f"piecewise takes a mapping of step to value, got {self.values!r}")
        for step in self.values:
            if isinstance(step, bool) or not isinstance(step, int) or step < 0:
                raise SpecError(f"a step of piecewise must be a whole number ≥ 0, got {step!r}")
        if 0 not in self.values:
            raise SpecError(f"piecewise must say what holds at step 0, got {dict(self.values)!r}")
        values = {s: number(f"value at step {s}", v) for s, v in sorted(self.values.items())}
        object.__setattr__(self, "values", values)

    def __repr__(self) -> str:
        return f"piecewise({{{', '.join(f'{s}: {shown(v)}' for s, v in self.values.items())}}})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, piecewise) and self.values == other.values

    def __hash__(self) -> int:
        return hash(tuple(self.values.items()))

    def bounds(self) -> tuple[float, float]:
        return min(self.values.values()), max(self.values.values())

    def __call__(self, step: int) -> float:
        return self.values[max(first for first in self.values if first <= step)]


@dataclass(frozen=True, repr=False)
class warmup(Schedule):  # noqa: N801
    """``schedule(t)·min(t/steps, 1)``: from 0 up to any schedule.

    Args:
        schedule: a number or another schedule, which goes on from its own step 0 meanwhile.
        steps: how many real optimizer steps the way takes, at least 1.

    Raises:
        SpecError: ``schedule`` is neither, or ``steps`` is not a whole number of at least 1.

    >>> warmup(linear(1.0, 0.0, steps=10), steps=2)(1)
    0.45
    """

    schedule: ScheduleLike
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", as_schedule(self.schedule, "schedule"))
        object.__setattr__(self, "steps", whole(self.steps))

    def __repr__(self) -> str:
        return f"warmup({self.schedule!r}, steps={self.steps})"

    def bounds(self) -> tuple[float, float]:
        if not isinstance(self.schedule, Schedule):
            raise NotImplementedError("the bounds of a callable are not known")
        low, high = self.schedule.bounds()
        return min(low, 0.0), max(high, 0.0)

    def __call__(self, step: int) -> float:
        schedule: Callable[[int], float] = self.schedule  # type: ignore[assignment]
        return schedule(step) * min(step / self.steps, 1.0)


def as_schedule(
    value: object, argument: str = "strength", *, low: float = -math.inf, high: float = math.inf
) -> Callable[[int], float]:
    """Turn a number or a callable into a schedule whose values lie in ``[low, high]``.

    A number, and a schedule of this module, is checked for good; any other callable for step 0
    (and by :func:`regplug.values.checked` at every step).

    Raises:
        SpecError: ``value`` is neither, or leaves the range; it names ``argument`` and the value.
    """
    if not callable(value):
        value = constant(number(argument, value))
    try:
        ends = value.bounds() if isinstance(value, Schedule) else (value(0),)
    except NotImplementedError:
        ends = (value(0),)
    except Exception as error:
        raise SpecError(
            f"{argument} must be a number or a callable of the step, but {value!r} "
            f"at step 0 raised {type(error).__name__}: {error}"
        ) from error
    for end in ends:
        checked(number(argument, end), argument, low=low, high=high)
    return value
