"""Which of several strengths each parameter has, where a plugin has them by pattern.

Parameters of the same strengths are a part of what is covered. A mapping is judged as strictly as
``where=``: each of its patterns must be the first to match something that is selected.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch

from regplug.backend.names import Named
from regplug.backend.words import listed, nearest
from regplug.errors import SelectionError
from regplug.selection.patterns import NO, Patterns
from regplug.strengths import ByPattern, Setting, layers_above

__all__ = ["Keys", "Narrowing", "Parts", "Strengths"]

Match: TypeAlias = Callable[[Named, Any], float]


class Keys:
    """The patterns of one mapping.

    Args:
        argument: whose strengths they are, for messages.
        patterns: in order; each is what an element of ``where=`` may be, but no callable.

    Raises:
        SelectionError: one is no such pattern.
    """

    def __init__(self, argument: str, patterns: Iterable[str]) -> None:
        self.argument = argument
        self._patterns = {text: Patterns(text, "weights") for text in patterns}

    def first(self, named: Named, matches: Match) -> str | None:
        """Return the first pattern that matches, by any name of a tied parameter."""
        for text, patterns in self._patterns.items():
            if patterns.decide(partial(matches, named)) != NO:
                return text
        return None

    def check(
        self, known: Sequence[Named], chosen: Sequence[Named], where: object, matches: Match
    ) -> None:
        """Refuse a pattern that is the first for nothing that is selected: it is mistyped.

        Raises:
            SelectionError: there is one; it says why, and what there is.
        """
        used = {self.first(named, matches) for named in chosen}
        for text, patterns in self._patterns.items():
            if text in used:
                continue
            anywhere = [n for n in known if patterns.decide(partial(matches, n)) != NO]
            if not anywhere:
                names = [name for named in known for name in named.names]
                close = ", ".join(nearest(text, names))
                raise SelectionError(
                    f"{self.argument}: the pattern {text!r} matches no parameter; the nearest "
                    f"names are {close}"
                )
            here = {id(named.parameter) for named in chosen}
            selected = [named for named in anywhere if id(named.parameter) in here]
            if not selected:
                raise SelectionError(
                    f"{self.argument}: the pattern {text!r} matches "
                    f"{listed([named.name for named in anywhere])}, which where={where!r} leaves "
                    "out: select it too, as where='all' does, or take the pattern away"
                )
            earlier = self.first(selected[0], matches)
            raise SelectionError(
                f"{self.argument}: the pattern {text!r} is never reached: all that it matches "
                f"({listed([named.name for named in selected])}) is taken by patterns before it, "
                f"such as {earlier!r}, for the first that matches counts: put it before them"
            )


class Narrowing:
    """What mappings take away from a selection: parameters for which there is no strength.

    Args:
        keys: of each mapping.
        needed: those that must match; of the others one is enough.
        enough: whether a parameter that none of the others matches is covered all the same.
    """

    def __init__(self, keys: Sequence[Keys], needed: Sequence[Keys], *, enough: bool) -> None:
        self._keys, self._needed, self._enough = tuple(keys), tuple(needed), enough

    def of(
        self, known: Sequence[Named], chosen: Sequence[Named], where: object, matches: Match
    ) -> list[Named]:
        """Return those of ``chosen`` that have strengths.

        Raises:
            SelectionError: a pattern is the first for none of them.
        """
        for keys in self._keys:
            keys.check(known, chosen, where, matches)
        return [named for named in chosen if self._keeps(named, matches)]

    def _keeps(self, named: Named, matches: Match) -> bool:
        if any(keys.first(named, matches) is None for keys in self._needed):
            return False
        return self._enough or any(keys.first(named, matches) is not None for keys in self._keys)


class Parts:
    """The parts of what is covered.

    Args:
        mappings: the strengths by pattern, by attribute.
        covered: the names and parameters that are covered.
        order: the names of all parameters of the model, in its order.
        matches: tells whether a parameter matches a pattern.

    Attributes:
        settings: of each part, for each attribute, what holds there; None where its mapping has
            nothing.
        labels: of each part, for each attribute, what people call it.
    """

    def __init__(
        self,
        mappings: Mapping[str, ByPattern],
        covered: Iterable[tuple[Named, torch.Tensor]],
        order: Iterable[str],
        matches: Match,
    ) -> None:
        deep = any(mapping.decays for mapping in mappings.values())
        layers = layers_above(order) if deep else {}
        keys = {name: Keys(name, mapping.entries) for name, mapping in mappings.items()}
        self._of: dict[int, int] = {}
        self.settings: list[dict[str, Setting | None]] = []
        self.labels: list[dict[str, str]] = []
        known: dict[Any, int] = {}
        factors: dict[str, dict[str, dict[float, None]]] = {name: {} for name in mappings}
        for named, parameter in covered:
            settings: dict[str, Setting | None] = {}
            labels: dict[str, str] = {}
            for name, mapping in mappings.items():
                pattern = keys[name].first(named, matches)
                settings[name] = None
                if pattern is None:
                    continue
                factor, label = 1.0, pattern
                if pattern in mapping.decays:
                    layer, above = layers[named.name]
                    factor = mapping.decays[pattern] ** above
                    label = layer if mapping.alone else f"{pattern} {layer}"
                settings[name], labels[name] = Setting(pattern, factor), label
                factors[name].setdefault(pattern, {})[factor] = None
            key = tuple(settings.items())
            if key not in known:
                known[key] = len(self.settings)
                self.settings.append(settings)
                self.labels.append(labels)
            self._of[id(parameter)] = known[key]
        for name, mapping in mappings.items():
            mapping.settle(factors[name])

    def number(self, parameter: torch.Tensor) -> int:
        """Return the part that a covered parameter belongs to."""
        return self._of[id(parameter)]

    def rows(self, parameters: Sequence[torch.Tensor]) -> dict[int, list[int]]:
        """Return for each part the places of its parameters in a list."""
        found: dict[int, list[int]] = {}
        for row, parameter in enumerate(parameters):
            found.setdefault(self._of[id(parameter)], []).append(row)
        return found


class Strengths:
    """The strengths of a plugin's parts, as formulas read them.

    Args:
        parts: what has which.
        mappings: the plugin's own, by attribute.
        read: returns the value of an attribute of the plugin.
        of: what the parts are of.
    """

    def __init__(
        self,
        parts: Parts,
        mappings: Mapping[str, ByPattern],
        read: Callable[[str], float],
        of: object,
    ) -> None:
        self.parts, self._mappings, self._read, self.of = parts, dict(mappings), read, of

    def __reduce__(self) -> Any:
        return type(None), ()  # of no use to a copy of the plugin, which finds its own

    @property
    def names(self) -> tuple[str, ...]:
        """The attributes that have mappings."""
        return tuple(self._mappings)

    @contextmanager
    def at(self, part: int) -> Iterator[None]:
        """Have the attributes read as they are in a part, 0 where a mapping has nothing for it."""
        settings = self.parts.settings[part]
        for name, mapping in self._mappings.items():
            mapping.now = settings[name]
            mapping.instead = 0.0 if mapping.now is None else None
        try:
            yield
        finally:
            for mapping in self._mappings.values():
                mapping.now = mapping.instead = None

    @contextmanager
    def reading(self, symbols: Sequence[Any]) -> Iterator[None]:
        """Have the attributes read as these: symbols, or 0-d tensors."""
        for mapping, symbol in zip(self._mappings.values(), symbols, strict=True):
            mapping.instead = symbol
        try:
            yield
        finally:
            for mapping in self._mappings.values():
                mapping.instead = None

    def values(self, part: int) -> tuple[float, ...]:
        """Return each attribute's value in a part now."""
        with self.at(part):
            return tuple(self._read(name) for name in self._mappings)
