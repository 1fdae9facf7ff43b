"""Strengths that are not the same for all modules: by pattern, and by layer.

>>> from regplug.schedules import linear
>>> strengths = ByPattern({"encoder.*": 1e-5, "*": linear(0, 1e-4, steps=10)}, "strength")
>>> strengths
{'encoder.*': 1e-05, '*': linear(0, 0.0001, steps=10)}
>>> strengths(0), strengths(10)                          # the largest of them
(1e-05, 0.0001)
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from regplug.errors import SpecError
from regplug.schedules import Schedule, ScheduleLike, as_schedule, constant
from regplug.values import checked, number, shown

__all__ = ["ByPattern", "Setting", "StrengthLike", "layers_above", "per_layer"]


@dataclass(frozen=True, repr=False)
class per_layer:  # noqa: N801 - it reads as a function, as schedules do
    r"""A strength that is another in each layer: ``value·decay^d``, d the layers above.

    What lies nearest to the output has the whole strength, d = 0. Layers are told by names: the
    first whole number in a parameter's name is that of its layer (``encoder.layer.3.…``,
    ``transformer.h.11.…``, ``layers.0.…``), and several stacks (an encoder and a decoder, the
    stages of a ResNet) follow each other in the model's order. What comes before the first of
    these in the model (embeddings) is one layer below all of them; what comes after the last (a
    final norm, a head) is one above; what stands between two is of the layer before it. Where no
    name has a number, each module that has parameters of its own is a layer, in the model's order.
    Layers are counted over the whole model, whatever is selected.

    Args:
        value: the strength at the top, a number or a schedule of the step count.
        decay: what it is multiplied by for each layer further down, above 0; above 1 it grows.

    Raises:
        SpecError: ``value`` is neither a finite number nor a schedule, or ``decay`` is not above 0.

    References:
        Kevin Clark, Minh-Thang Luong, Quoc V. Le, Christopher D. Manning, "ELECTRA: Pre-training
        Text Encoders as Discriminators Rather Than Generators", 2020,
        https://arxiv.org/abs/2003.10555 (of learning rates).
        Hangbo Bao, Li Dong, Songhao Piao, Furu Wei, "BEiT: BERT Pre-Training of Image
        Transformers", 2022, https://arxiv.org/abs/2106.08254 (likewise; the same layers).

    >>> per_layer(1e-4, decay=0.9)
    per_layer(0.0001, decay=0.9)
    """

    value: ScheduleLike
    decay: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", as_schedule(self.value, "value"))
        object.__setattr__(self, "decay", number("decay", self.decay))
        if self.decay <= 0:
            raise SpecError(f"decay must be above 0, got {self.decay!r}")

    def __repr__(self) -> str:
        return f"per_layer({_plain(self.value)}, decay={shown(self.decay)})"


StrengthLike = ScheduleLike | per_layer | Mapping[str, ScheduleLike | per_layer]
"""What a strength may be where one for each module is taken."""


class Setting(NamedTuple):
    """What holds in some modules: the pattern, and what its strength is multiplied by there."""

    pattern: str
    factor: float = 1.0


class ByPattern(Schedule):
    """The strengths of one attribute of one plugin, by pattern; the first that matches counts.

    Called with a step it gives the strength in the modules that ``now`` tells of, and the largest
    of all where that is None.

    Args:
        given: a mapping of patterns to numbers, schedules or :class:`per_layer`, or the latter
            alone, for all that is selected.
        argument: whose strengths they are, for messages.
        low: the smallest value allowed.
        high: the largest value allowed.

    Raises:
        SpecError: there is no pattern, a pattern is no string, or a strength is none.

    Attributes:
        now: the setting of the modules that are worked on.
        instead: is read in place of a strength where it is not None: the symbol that stands for it
            while a formula is recorded, or 0 where no pattern matches.
        factors: of each pattern, those that its layers have in the model it is attached to.
    """

    def __init__(
        self, given: object, argument: str, low: float = 0.0, high: float = math.inf
    ) -> None:
        self.alone = isinstance(given, per_layer)
        entries = {"*": given} if self.alone else given
        if not isinstance(entries, Mapping) or not entries:
            raise SpecError(
                f"{argument} by pattern must name a pattern, as {{'encoder.*': 1e-5, '*': 1e-4}}, "
                f"got {given!r}"
            )
        self.entries: dict[str, Callable[[int], float]] = {}
        self.decays: dict[str, float] = {}
        for pattern, value in entries.items():
            if not isinstance(pattern, str) or not pattern.strip():
                raise SpecError(f"a pattern of {argument} must be a string, got {pattern!r}")
            what = argument if self.alone else f"{argument}[{pattern!r}]"
            if isinstance(value, Mapping):
                raise SpecError(f"{what} must be a number or a schedule, got a mapping: {value!r}")
            top = value
            if isinstance(value, per_layer):
                self.decays[pattern] = value.decay
                top = value.value
            self.entries[pattern] = as_schedule(top, what, low=low, high=high)
        self.argument, self.low, self.high = argument, low, high
        self.now: Setting | None = None
        self.instead: Any = None
        self.factors: dict[str, tuple[float, ...]] = {}

    def __repr__(self) -> str:
        said = {}
        for pattern, schedule in self.entries.items():
            value = _plain(schedule)
            if pattern in self.decays:
                value = f"per_layer({value}, decay={shown(self.decays[pattern])})"
            said[pattern] = value
        if self.alone:
            return said["*"]
        return "{" + ", ".join(f"{pattern!r}: {value}" for pattern, value in said.items()) + "}"

    def __eq__(self, other: object) -> bool:
        mine = self.entries, self.decays, list(self.entries)
        return isinstance(other, ByPattern) and mine == (
            other.entries,
            other.decays,
            list(other.entries),
        )

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, step: int) -> float:
        if self.now is not None:
            return self.entries[self.now.pattern](step) * self.now.factor
        return max(
            schedule(step) * max(self.factors.get(pattern, ()), default=1.0)
            for pattern, schedule in self.entries.items()
        )

    def bounds(self) -> tuple[float, float]:
        """Return the smallest and the largest value of any pattern, in any layer."""
        ends: list[float] = []
        for pattern, schedule in self.entries.items():
            if not isinstance(schedule, Schedule):
                raise NotImplementedError("the bounds of a callable are not known")
            factors = self.factors.get(pattern) or (1.0,)
            ends += [end * factor for end in schedule.bounds() for factor in factors]
        return min(ends), max(ends)

    def each(
        self, change: Callable[[Callable[[int], float]], ScheduleLike]
    ) -> "per_layer | dict[str, ScheduleLike | per_layer]":
        """Return what this was made of, with each schedule changed.

        >>> ByPattern({"a": 1.0, "*": per_layer(2.0, 0.5)}, "strength").each(lambda s: s(0) / 2)
        {'a': 0.5, '*': per_layer(1, decay=0.5)}
        """
        changed: dict[str, ScheduleLike | per_layer] = {
            text: per_layer(change(schedule), self.decays[text])
            if text in self.decays
            else change(schedule)
            for text, schedule in self.entries.items()
        }
        alone = changed["*"] if self.alone else None
        return alone if isinstance(alone, per_layer) else changed

    @property
    def constant(self) -> bool:
        """Whether no strength ever changes."""
        return all(type(schedule) is constant for schedule in self.entries.values())

    def settle(self, factors: Mapping[str, Iterable[float]]) -> None:
        """Take the factors that patterns have in a model, and check what they come to.

        Raises:
            SpecError: a strength leaves its range by them.
        """
        self.factors = {pattern: tuple(each) for pattern, each in factors.items()}
        try:
            ends = self.bounds()
        except NotImplementedError:
            return  # checked at each step
        for end in ends:
            checked(end, self.argument, low=self.low, high=self.high)


_NUMBER = re.compile(r"(?:^|\.)\d+(?:\.|$)")


def layers_above(names: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Return the layer of each parameter, and how many layers lie above that one.

    Args:
        names: of all parameters of a model, in its order.

    Returns:
        For each name, what its layer is called, and how many layers are above it.

    >>> layers_above(["embed.weight", "h.0.weight", "h.0.bias", "h.1.weight", "head.weight"])
    ... # doctest: +NORMALIZE_WHITESPACE
    {'embed.weight': ('below', 3), 'h.0.weight': ('h.0', 2), 'h.0.bias': ('h.0', 2),
     'h.1.weight': ('h.1', 1), 'head.weight': ('above', 0)}
    >>> layers_above(["first.weight", "first.bias", "second.weight"])
    {'first.weight': ('first', 1), 'first.bias': ('first', 1), 'second.weight': ('second', 0)}
    """
    names = list(names)
    numbered = [
        name[: found.end()].rstrip(".") if (found := _NUMBER.search(name)) else None
        for name in names
    ]
    if not any(numbered):
        own = [name.rpartition(".")[0] for name in names]
    else:
        last = max(place for place, layer in enumerate(numbered) if layer)
        own, before = [], "below"
        for place, layer in enumerate(numbered):
            before = layer or ("above" if place > last else before)
            own.append(before)
    order = {layer: level for level, layer in enumerate(dict.fromkeys(own))}
    top = len(order) - 1
    return {name: (layer, top - order[layer]) for name, layer in zip(names, own, strict=True)}


def _plain(schedule: object) -> str:
    return shown(schedule.value) if type(schedule) is constant else repr(schedule)
