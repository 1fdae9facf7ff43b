"""Numbers as users give them: checked, and shown in messages."""

import math

from regplug.errors import SpecError

__all__ = ["checked", "number", "shown", "whole"]


def number(argument: str, value: object) -> float:
    """Return ``value`` as a finite float.

    Raises:
        SpecError: it is none; the message names ``argument``.
    """
    if isinstance(value, bool | str | bytes):
        raise SpecError(f"{argument} must be a number, got {value!r}")
    try:
        found = float(value)  # type: ignore[arg-type]
    except OverflowError as error:
        raise SpecError(f"{argument} must be finite, got a number beyond all floats") from error
    except (TypeError, ValueError) as error:
        raise SpecError(f"{argument} must be a number, got {value!r}") from error
    if not math.isfinite(found):
        raise SpecError(f"{argument} must be finite, got {value!r}")
    return found


def whole(value: object) -> int:
    """Return ``value`` as a number of steps, at least 1.

    Raises:
        SpecError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise SpecError(f"steps must be a whole number, got {value!r}")
    if value < 1:
        raise SpecError(f"steps must be at least 1, got {value!r}")
    return int(value)


def shown(value: float) -> str:
    """Return a float in short, yet exactly: ranks compare schedules by what they look like."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def checked(value: float, argument: str, *, low: float = 0.0, high: float = math.inf) -> float:
    """Return ``value`` if it is finite and within ``[low, high]``, else say what it was.

    Raises:
        SpecError: it is not; the message names ``argument``.
    """
    # One chained comparison, which NaN fails too: this runs at every step.
    if low <= value <= high and value not in (math.inf, -math.inf):
        return value
    if low == 0 and high == math.inf:
        raise SpecError(f"{argument} must be finite and not negative, got {value!r}")
    raise SpecError(f"{argument} must be finite and within [{low:g}, {high:g}], got {value!r}")
