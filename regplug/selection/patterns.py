"""The parts of ``where=``: patterns and callables, their intersections, and what each takes.

A lazy parameter has no shape before the first forward, so that what it is can't be told yet: a part
takes a parameter, leaves it, or it is open. These are numbers, so that "and" is the least of them.

>>> import torch
>>> from regplug.backend.names import named_parameters
>>> weight, bias = named_parameters(torch.nn.Linear(2, 1))
>>> part = parse("weights & !head.*")
>>> part.takes(weight) == YES, part.takes(bias) == NO
(True, True)
>>> lazy, _ = named_parameters(torch.nn.LazyLinear(1))
>>> part.takes(lazy) == OPEN
True
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn
from torch.nn.parameter import is_lazy

from regplug.backend.names import Named, is_normalization
from regplug.errors import SelectionError

__all__ = ["NO", "OPEN", "YES", "Part", "Predicate", "parse"]

Predicate: TypeAlias = Callable[[str, nn.Parameter, nn.Module], bool]

NO, OPEN, YES = 0, 1, 2

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

    def takes(self, named: Named) -> int:
        """Return YES, NO or OPEN."""
        return min(
            *(_matches(pattern, named) for pattern in self.wanted),
            *(YES - _matches(pattern, named) for pattern in self.unwanted),
            YES,
        )

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of names that must match."""
        return tuple(pattern for pattern in self.wanted if isinstance(pattern, str))


def parse(part: object) -> Part | None:
    """Return an element of ``where=``, or None if it is none.

    >>> parse("!*.bias")
    Part(text='!*.bias', wanted=('*.bias',), unwanted=(), excludes=True)
    >>> parse("!*.bias & encoder.*")
    Part(text='!*.bias & encoder.*', wanted=('encoder.*',), unwanted=('*.bias',), excludes=False)
    """
    if callable(part):
        return Part(repr(part), (part,))
    if not isinstance(part, str):
        return None
    atoms = [atom.strip() for atom in _AND.split(part)] if _AND.search(part) else [part]
    if not all(atom.lstrip("!").strip() for atom in atoms):
        return None
    unwanted = tuple(atom[1:].lstrip() for atom in atoms if atom.startswith("!"))
    wanted = tuple(atom for atom in atoms if not atom.startswith("!"))
    if len(atoms) == 1 and unwanted:
        return Part(part, (part[1:],), excludes=True)
    return Part(part, wanted or ("weights",), unwanted)


def _matches(pattern: str | Predicate, named: Named) -> int:
    if not isinstance(pattern, str):
        if is_lazy(named.parameter):
            return OPEN  # it may well ask for the shape
        pairs = zip(named.names, named.modules, strict=True)
        return YES if any(pattern(n, named.parameter, m) for n, m in pairs) else NO
    if pattern == "all":
        return YES
    if pattern == "weights":
        return _is_weight(named)
    try:
        return YES if any(fnmatchcase(name, pattern) for name in named.names) else NO
    except re.error as error:
        raise SelectionError(f"{pattern!r} is no glob pattern: {error}") from error


def _is_weight(named: Named) -> int:
    """Two or more dimensions, floating, and no normalization layer: judged by type and shape."""
    parameter = named.parameter
    lazy = is_lazy(parameter)
    if not parameter.is_floating_point() or not (lazy or parameter.ndim >= 2):
        return NO
    if any(is_normalization(module) for module in named.modules):
        return NO
    return OPEN if lazy else YES
