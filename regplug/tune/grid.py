"""The grid: specs with a placeholder, and the strengths to put there.

>>> grid = Grid({"l1": [0.1, 0.01], "elastic_net(_, 0.5, where='all')": [1.0]})
>>> grid.candidates[1]
{'l1': 0.01, "elastic_net(_, 0.5, where='all')": 1.0}
>>> grid.specs(grid.candidates[1])
['l1(0.01)', "elastic_net(1.0, 0.5, where='all')"]
"""

import itertools
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from regplug.discovery import files
from regplug.discovery.specs import Template
from regplug.errors import SpecError

__all__ = ["Auto", "Candidate", "Grid"]

Candidate = dict[str, float]


@dataclass(frozen=True)
class Auto:
    r"""A geometric path of ``n`` strengths, from the top of a proximal penalty down to ``eps``.

    The top is the smallest strength that keeps every selected weight at zero; the path is
    ``top · eps^(k/(n−1))`` for ``k = 0 … n−1``. In a grid, ``"auto"`` is short for ``Auto()``.

    Args:
        eps: the smallest strength over the largest, between 0 and 1.
        n: how many strengths, at least 2.

    Raises:
        SpecError: ``eps`` or ``n`` is out of range.

    References:
        Jerome Friedman, Trevor Hastie, Rob Tibshirani, "Regularization Paths for Generalized
        Linear Models via Coordinate Descent", 2010, https://doi.org/10.18637/jss.v033.i01
        (section 2.5: the path from the entry of the first variable, with warm starts).

    >>> [round(strength, 3) for strength in Auto(eps=0.01, n=3).below(2.0)]
    [2.0, 0.2, 0.02]
    """

    eps: float = 1e-3
    n: int = 30

    def __post_init__(self) -> None:
        if not (isinstance(self.eps, numbers.Real) and 0 < self.eps < 1):
            raise SpecError(f"eps must be above 0 and below 1, got {self.eps!r}")
        if isinstance(self.n, bool) or not isinstance(self.n, numbers.Integral) or self.n < 2:
            raise SpecError(f"n must be a whole number of at least 2, got {self.n!r}")

    def below(self, top: float) -> tuple[float, ...]:
        """Return the path that starts at ``top``."""
        return (top, *(top * self.eps ** (k / (self.n - 1)) for k in range(1, self.n)))


@dataclass(frozen=True)
class Axis:
    """One key of the grid: a spec with one placeholder, and what goes there."""

    key: str
    template: Template
    values: tuple[float, ...] | Auto
    place: int = 0
    others: tuple[float, ...] | None = None
    """Of a spec with a placeholder for each pattern: one value for each of these."""

    def spec(self, value: float) -> str:
        """Return the spec with ``value`` in the place of the placeholder."""
        if self.others is None:
            return self.template.filled(value)
        filled = [value if i == self.place else other for i, other in enumerate(self.others)]
        return self.template.filled_by(filled)


class Grid:
    """All combinations of the strengths of one or more specs, in the order of the keys.

    Args:
        grid: a mapping of specs to strengths. A spec holds the placeholder ``_`` once, as in
            ``"l1(_, where='all')"`` or ``"l1(linear(0, _, steps=100))"``; a bare name stands for
            ``name(_)``. The strengths are numbers, or ``"auto"``. For strengths by pattern it
            holds one for each pattern, and the strengths are a mapping of patterns to numbers:
            ``{"l1({'encoder.*': _, '*': _})": {"encoder.*": [1e-5, 1e-4], "*": [1e-3]}}``. The
            key of each is then ``"l1({'encoder.*': _, '*': _}) encoder.*"``, and so on.

    Raises:
        SpecError: the grid or one of its lists is empty, a key is no spec or holds the
            placeholder not at all or twice, a strength is no finite number or there twice.
    """

    def __init__(self, grid: Mapping[str, Iterable[float] | str | Auto]) -> None:
        if not isinstance(grid, Mapping):
            raise SpecError(
                "grid must be a mapping of specs to strengths, as {'plugin': [1e-3, 1e-4]}, "
                f"got {grid!r}"
            )
        if not grid:
            raise SpecError(
                "grid is empty: name a plugin and its strengths, as {'plugin': [1e-3, 1e-4]}"
            )
        self.axes = tuple(axis for key, values in grid.items() for axis in _axes(key, values))

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys as they were written."""
        return tuple(axis.key for axis in self.axes)

    @property
    def automatic(self) -> tuple[Axis, ...]:
        """The axes whose strengths are still to be found."""
        return tuple(axis for axis in self.axes if isinstance(axis.values, Auto))

    @property
    def candidates(self) -> list[Candidate]:
        """Every combination, the last key running fastest."""
        lists = []
        for axis in self.axes:
            if isinstance(axis.values, Auto):
                raise SpecError(f"the strengths of grid[{axis.key!r}] are still to be found")
            lists.append(axis.values)
        return [dict(zip(self.keys, chosen, strict=True)) for chosen in itertools.product(*lists)]

    def specs(self, candidate: Mapping[str, float]) -> list[str]:
        """Return the specs of one combination, in the order of the keys."""
        found = []
        for axis in self.axes:
            if axis.others is None:
                found.append(axis.spec(candidate[axis.key]))
            elif axis.place == 0:  # the others of this spec follow
                alike = [other for other in self.axes if other.template is axis.template]
                values = [candidate[other.key] for other in alike]
                found.append(axis.template.filled_by(values))
        return found

    def with_values(self, found: Mapping[str, tuple[float, ...]]) -> "Grid":
        """Return the grid with the strengths that were found for its automatic axes."""
        other = Grid.__new__(Grid)
        other.axes = tuple(
            replace(axis, values=found.get(axis.key, axis.values)) for axis in self.axes
        )
        return other

    def with_argument(self, key: str, argument: str, value: Any) -> "Grid":
        """Return the grid with ``argument=value`` added to the call in ``key``'s spec."""
        other = Grid.__new__(Grid)
        other.axes = tuple(
            replace(axis, template=axis.template.with_argument(argument, value))
            if axis.key == key
            else axis
            for axis in self.axes
        )
        return other


def _axes(key: object, values: Any) -> list[Axis]:
    """Return the axes of one key: several where strengths are by pattern."""
    if not (isinstance(key, str) and isinstance(values, Mapping)):
        template = _template(key)
        assert isinstance(key, str)
        return [Axis(key, template, _values(key, values))]
    try:
        template, patterns = Template.by_pattern(*_text_and_head(key))
    except SpecError as error:
        raise SpecError(f"grid[{key!r}]: {error}") from error
    if set(patterns) != set(values):
        raise SpecError(
            f"grid[{key!r}] must list the strengths of the patterns {', '.join(patterns)}, got "
            f"{', '.join(map(str, values)) or 'none'}"
        )
    lists: list[tuple[float, ...]] = []
    for pattern in patterns:
        found = _values(f"{key} {pattern}", values[pattern])
        if isinstance(found, Auto):
            raise SpecError(
                f"grid[{key!r}]: 'auto' finds one strength for all: list those of {pattern!r}"
            )
        lists.append(found)
    firsts = tuple(each[0] for each in lists)
    return [
        Axis(f"{key} {pattern}", template, each, place, firsts)
        for place, (pattern, each) in enumerate(zip(patterns, lists, strict=True))
    ]


def _template(key: object) -> Template:
    if not isinstance(key, str) or not key.strip():
        raise SpecError(
            f"a key of grid must be a spec such as 'plugin' or 'plugin(_, where=\"all\")', "
            f"got {key!r}"
        )
    try:
        return Template.of(*_text_and_head(key))
    except SpecError as error:
        raise SpecError(f"grid[{key!r}]: {error}") from error


def _text_and_head(key: str) -> tuple[str, str | None]:
    """Return a spec as that of a plugin's name, and the file that stands there instead, if any."""
    in_file = files.split(key)
    return (key, None) if in_file is None else (in_file.as_call, in_file.head)


def _values(key: str, values: object) -> tuple[float, ...] | Auto:
    if isinstance(values, Auto):
        return values
    if isinstance(values, str):
        if values == "auto":
            return Auto()
        raise SpecError(f"grid[{key!r}] must be a list of strengths or 'auto', got {values!r}")
    if not isinstance(values, Iterable) or isinstance(values, bytes | Mapping):
        raise SpecError(f"grid[{key!r}] must be a list of strengths or 'auto', got {values!r}")
    try:
        numbers_ = tuple(_number(key, value) for value in values)
    except TypeError as error:  # an array without dimensions says that it is iterable, and is not
        raise SpecError(f"grid[{key!r}] must be a list of strengths, got {values!r}") from error
    if not numbers_:
        raise SpecError(f"grid[{key!r}] is empty: give at least one strength")
    for value in numbers_:
        if numbers_.count(value) > 1:
            raise SpecError(f"grid[{key!r}] holds {value!r} more than once")
    return numbers_


def _number(key: str, value: Any) -> float:
    """Return ``value`` as Python's own int or float; whole numbers stay whole (``steps=_``)."""
    try:
        plain = value.item() if hasattr(value, "item") else value
    except (ValueError, RuntimeError):  # an array or tensor of several numbers
        plain = value
    if isinstance(plain, bool) or not isinstance(plain, numbers.Real):
        raise SpecError(f"grid[{key!r}] holds {value!r}, which is no number")
    number = int(plain) if isinstance(plain, numbers.Integral) else float(plain)
    if not math.isfinite(number):
        raise SpecError(f"grid[{key!r}] holds {value!r}, which is not finite")
    return number
