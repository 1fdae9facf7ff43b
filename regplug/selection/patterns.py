"""The patterns of ``where=``: what includes, what excludes, and what both come to.

A lazy parameter has no shape before the first forward, so that what it is can't be told yet: a part
takes a thing, leaves it, or it is open. These are numbers, so that "and" is the least of them, and
True and False are two of them.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

from regplug.errors import SelectionError

__all__ = ["NO", "OPEN", "YES", "Part", "Patterns", "Predicate", "globs"]

Predicate: TypeAlias = Callable[[str, nn.Parameter, nn.Module], bool]

NO, OPEN, YES = 0.0, 0.5, 1.0

Matches: TypeAlias = Callable[[str | Predicate], float]
"""Whether one thing matches one pattern: YES, NO or OPEN."""

_GLOBS = "a glob pattern, '!pattern', 'a & b' of these or a list of all that"

# An "&", but for one in the brackets of a glob pattern.
_AND = re.compile(r"&(?![^\[]*\])")


@dataclass(frozen=True)
class Part:
    """One element of ``where=``: what matches all of ``wanted`` and none of ``unwanted``.

    Attributes:
        text: as it was written.
        excludes: whether it takes away from the selection instead of adding to it.
    """

    text: str
    wanted: tuple[str | Predicate, ...]
    unwanted: tuple[str, ...] = ()
    excludes: bool = False

    def takes(self, matches: Matches) -> float:
        """Return YES, NO or OPEN."""
        return min(
            *(matches(pattern) for pattern in self.wanted),
            *(YES - matches(pattern) for pattern in self.unwanted),
            YES,
        )

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of names that must match."""
        return tuple(pattern for pattern in self.wanted if isinstance(pattern, str))


class Patterns:
    """What ``where=`` includes, and what it excludes: an exclusion always wins.

    Args:
        where: a glob pattern on names, ``"!pattern"`` to exclude, ``"a & b"`` for what matches
            both, or a list of all that, which is a union.
        default: what exclusions alone start from.
        allowed: what ``where`` may be, for the message.
        predicates: whether it may be a callable, or have some.

    Raises:
        SelectionError: ``where`` is none of these.

    >>> patterns = Patterns(["encoder.*", "!*.norm"])
    >>> patterns.takes("encoder.norm"), patterns.takes("encoder.0"), patterns.takes("head")
    (False, True, False)
    >>> Patterns("drops & !head.*", default="drops").takes("body.0", drops=True)
    True
    """

    def __init__(
        self,
        where: object,
        default: str = "*",
        *,
        allowed: str = _GLOBS,
        predicates: bool = False,
    ) -> None:
        self.where: list[Any] = list(where) if isinstance(where, list | tuple) else [where]
        parts = [_parsed(given, default, predicates) for given in self.where]
        found = [part for part in parts if part is not None]
        if not parts or len(found) < len(parts):
            raise SelectionError(f"where must be {allowed}, got {where!r}")
        self.exclude = [part for part in found if part.excludes]
        self.include = [part for part in found if not part.excludes] or [Part("", (default,))]

    def takes(self, *names: str, **words: bool) -> bool:
        """Return whether a thing of these names is taken.

        Args:
            names: what glob patterns are compared with; one that matches is enough.
            words: patterns that are no globs, each with whether the thing is such a one.
        """

        def matches(pattern: str | Predicate) -> bool:
            text = str(pattern)
            return words[text] if text in words else globs(text, names)

        return self.decide(matches) == YES

    def decide(self, matches: Matches) -> float:
        """Return YES, NO or OPEN for a thing that ``matches`` tells of."""
        excluded = max((part.takes(matches) for part in self.exclude), default=NO)
        if excluded == YES:
            return NO
        return min(YES - excluded, max(part.takes(matches) for part in self.include))


def _parsed(given: object, default: str, predicates: bool) -> Part | None:
    """Return an element of ``where=``, or None if it is none."""
    if callable(given) and predicates:
        return Part(repr(given), (given,))
    if not isinstance(given, str):
        return None
    atoms = [atom.strip() for atom in _AND.split(given)] if _AND.search(given) else [given]
    if not all(atom.lstrip("!").strip() for atom in atoms):
        return None
    unwanted = tuple(atom[1:].lstrip() for atom in atoms if atom.startswith("!"))
    wanted = tuple(atom for atom in atoms if not atom.startswith("!"))
    if len(atoms) == 1 and unwanted:
        return Part(given, (given[1:],), excludes=True)
    return Part(given, wanted or (default,), unwanted)


def globs(pattern: str, names: Sequence[str]) -> bool:
    """Return whether a glob pattern matches one of ``names``.

    Raises:
        SelectionError: it is no such pattern.
    """
    try:
        return any(fnmatchcase(name, pattern) for name in names)
    except re.error as error:
        raise SelectionError(f"{pattern!r} is no glob pattern: {error}") from error
