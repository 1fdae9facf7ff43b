"""Which parameters: ``where=`` turned into a set of named parameters of one model.

>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
>>> [named.name for named in Selection("weights").of(model)]
['0.weight', '2.weight']
>>> [named.name for named in Selection(["all", "!*.bias"]).of(model)]
['0.weight', '1.weight', '2.weight']
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, overload

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from regplug.errors import SelectionError, UnsupportedError
from regplug.layouts import Layout, layout_of
from regplug.named import Named, clean_name, named_parameters
from regplug.patterns import NO, YES, Part, Predicate, parse

__all__ = [
    "Coverage",
    "Covered",
    "Named",
    "Selection",
    "Where",
    "clean_name",
    "named_parameters",
    "nearest",
]

Where: TypeAlias = str | Predicate | Sequence[str | Predicate]


def nearest(wanted: str, names: Iterable[str], most: int = 3) -> list[str]:
    """Return up to ``most`` of ``names`` that look like ``wanted``, or simply the first ones."""
    names = list(dict.fromkeys(names))
    return difflib.get_close_matches(wanted, names, n=most, cutoff=0.4) or names[:most]


class Selection:
    """``where=``, checked when it is made and applied to a model as often as is wanted.

    Args:
        where: ``"weights"`` (trainable, floating, two or more dimensions, not in a normalization
            layer), ``"all"`` (trainable), a glob pattern on qualified names (``"encoder.*"``),
            ``"!pattern"`` to exclude, a callable ``(name, parameter, module) -> bool``, or
            ``"weights & encoder.*"``, which narrows: what matches all of these, and none of those
            with a ``!`` before them. A list of all that is a union: ``["weights", "encoder.*"]``
            covers all weights, and the encoder's biases too. In a list an exclusion always wins;
            a list of exclusions alone starts from ``"weights"``.

    Raises:
        SelectionError: ``where`` is none of these.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    >>> [named.name for named in Selection("weights & 1.*").of(model)]
    ['1.weight']
    >>> [named.name for named in Selection(["weights", "1.*"]).of(model)]
    ['0.weight', '1.weight', '1.bias']
    """

    def __init__(self, where: Where = "weights") -> None:
        given = list(where) if isinstance(where, list | tuple) else [where]
        if not given:
            raise SelectionError(f"where must not be empty, got {where!r}")
        parts = [part for part in map(parse, given) if part is not None]
        if len(parts) < len(given):
            raise SelectionError(
                "where must be 'weights', 'all', a glob pattern, '!pattern', 'a & b' of these, a "
                "list of all that or a callable (name, parameter, module) -> bool, got "
                f"{where!r}"
            )
        self.where = where
        self._exclude = [part for part in parts if part.excludes]
        self._include = [part for part in parts if not part.excludes] or [Part("", ("weights",))]

    def __repr__(self) -> str:
        return f"Selection({self.where!r})"

    def of(self, model: nn.Module) -> list[Named]:
        """Return the parameters of ``model`` that are selected; frozen ones are kept.

        They are left out at each step instead, so that a layer may thaw in the course of training.

        Raises:
            SelectionError: nothing trainable is selected, or a pattern matches no name at all;
                the message shows the nearest names.
            UnsupportedError: a complex parameter is asked for by ``"all"``, by name or callable.
        """
        return self.sorted(model)[0]

    def sorted(self, model: nn.Module) -> tuple[list[Named], list[Named]]:
        """Return the parameters that are selected, and the lazy ones that may be.

        A lazy parameter (of ``nn.LazyLinear`` and its like) is selected, or not, once it has a
        shape.

        Raises:
            SelectionError: nothing trainable is selected, nor may ever be; see :meth:`of`.
            UnsupportedError: see :meth:`of`.
        """
        known = named_parameters(model)
        for part in self._include:
            self._check_matches(part, known)
        taken = [(named, answer) for named in known if (answer := self._takes(named)) != NO]
        lazy = [named for named, _ in taken if is_lazy(named.parameter)]
        chosen = [named for named, _ in taken if not is_lazy(named.parameter)]
        for named in chosen:
            if named.parameter.is_complex():
                raise UnsupportedError(
                    f"{named.name} is {named.parameter.dtype}, and penalties are defined here for "
                    f"real weights only: exclude it with where=[…, '!{named.name}']"
                )
        chosen = [named for named in chosen if named.parameter.is_floating_point()]
        if not lazy and not any(named.parameter.requires_grad for named in chosen):
            frozen = f"; {len(chosen)} frozen ones match" if chosen else ""
            raise SelectionError(
                f"where={self.where!r} selects no trainable parameter{frozen}; "
                f"the model has {_shown(known)}"
            )
        return chosen, lazy

    def _takes(self, named: Named) -> int:
        excluded = max((part.takes(named) for part in self._exclude), default=NO)
        if excluded == YES:
            return NO
        return min(YES - excluded, max(part.takes(named) for part in self._include))

    def _check_matches(self, part: Part, known: list[Named]) -> None:
        """Refuse a part that takes nothing, though it names what it takes: it is mistyped."""
        if not part.patterns or any(part.takes(named) for named in known):
            return
        names = [name for named in known for name in named.names]
        if not names:
            raise SelectionError(
                f"where={self.where!r} matches nothing: the model has no parameters"
            )
        for pattern in part.patterns:
            matched = [n for n in known if Part(pattern, (pattern,)).takes(n)]
            if matched:
                continue
            if pattern == "weights":
                raise SelectionError(
                    "where='weights' matches nothing: no parameter has two or more dimensions "
                    f"outside normalization layers; the model has {_listed(names)}"
                )
            close = ", ".join(nearest(pattern, names))
            raise SelectionError(
                f"where={self.where!r}: {pattern!r} matches no parameter; the nearest names are "
                f"{close}"
            )
        last = part.patterns[-1]
        alone = [named.name for named in known if Part(last, (last,)).takes(named)]
        raise SelectionError(
            f"where={self.where!r}: {part.text!r} matches no parameter, though each of its parts "
            f"does: {last!r} alone is {_listed(alone)}"
        )


def _shown(known: Iterable[Named]) -> str:
    trainable = [named for named in known if named.parameter.requires_grad]
    lazy = sum(is_lazy(named.parameter) for named in trainable)
    without = f" ({lazy} lazy, with no shape yet)" if lazy else ""
    return _listed(named.name for named in trainable) + without


def _listed(names: Iterable[str], most: int = 6) -> str:
    shown = list(names)
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return (", ".join(shown[:most]) or "none") + more


@dataclass(frozen=True, eq=False)
class Covered:
    """One selected parameter of one optimizer."""

    name: str
    parameter: nn.Parameter
    group_index: int
    module: nn.Module


class Coverage(Sequence[Covered]):
    """The selection within one optimizer's parameters, in the optimizer's order.

    Attributes:
        entries: what is covered.
        lazy: what has no shape yet, and may be covered once it has: from its first forward on.
        where: the selection as it was given.
    """

    def __init__(
        self,
        entries: Iterable[Covered],
        lazy: Iterable[Covered] = (),
        where: Where = "weights",
    ) -> None:
        self.entries = tuple(entries)
        self.lazy = tuple(lazy)
        self.where = where
        self.by_group: dict[int, list[nn.Parameter]] = {}
        for entry in self.entries:
            self.by_group.setdefault(entry.group_index, []).append(entry.parameter)

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Covered: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Covered, ...]: ...
    def __getitem__(self, index: int | slice) -> Covered | tuple[Covered, ...]:
        return self.entries[index]

    def __iter__(self) -> Iterator[Covered]:
        return iter(self.entries)

    @property
    def trainable(self) -> list[Covered]:
        """The entries that are not frozen now."""
        return [entry for entry in self.entries if entry.parameter.requires_grad]

    @cached_property
    def layouts(self) -> dict[torch.Tensor, Layout]:
        """The layouts of what is kept otherwise than ``(out, in, …)``, by parameter."""
        found = ((e.parameter, layout_of(e.module, e.parameter)) for e in self.entries)
        return {parameter: layout for parameter, layout in found if layout is not None}

    @property
    def outdated(self) -> bool:
        """Whether a lazy parameter has a shape by now, so that the selection is to be made anew."""
        return any(not is_lazy(entry.parameter) for entry in self.lazy)

    @property
    def names(self) -> list[str]:
        """The names of all that is, or may once be, covered: what ranks must have alike."""
        return [entry.name for entry in (*self.entries, *self.lazy)]

    @property
    def weights(self) -> int:
        """How many trainable weights there are, over all shards."""
        return sum(entry.parameter.numel() for entry in self.trainable)


def shared(model: nn.Module, groups: Sequence[dict[str, list[torch.Tensor]]]) -> list[str]:
    """Return the names of the model's parameters that an optimizer's ``groups`` hold.

    Raises:
        SelectionError: there are none.
    """
    own = {id(parameter) for group in groups for parameter in group["params"]}
    names = [named.name for named in named_parameters(model) if id(named.parameter) in own]
    if not names:
        raise SelectionError(
            "this optimizer has no parameter of this model: it was made from another model, or "
            "from this one before its parameters were replaced; make it after the model is in its "
            "final form, or attach again"
        )
    return names


def cover(
    selection: Selection, model: nn.Module, groups: Sequence[dict[str, list[torch.Tensor]]]
) -> Coverage:
    """Return what ``selection`` covers of the parameters in an optimizer's ``groups``.

    Raises:
        SelectionError: the selection matches nothing, or nothing that this optimizer updates.
    """
    chosen, lazy = selection.sorted(model)
    entries, waiting = (_within(some, groups) for some in (chosen, lazy))
    if not waiting and not any(entry.parameter.requires_grad for entry in entries):
        updated = shared(model, groups)
        raise SelectionError(
            f"where={selection.where!r} selects {_shown([*chosen, *lazy])}, none "
            f"of which this optimizer updates: it has {_listed(updated)}"
        )
    return Coverage(entries, waiting, selection.where)


def _within(
    chosen: Iterable[Named], groups: Sequence[dict[str, list[torch.Tensor]]]
) -> list[Covered]:
    own = {id(named.parameter): named for named in chosen}
    return [
        Covered(named.name, named.parameter, index, named.modules[0])
        for index, group in enumerate(groups)
        for parameter in group["params"]
        if (named := own.get(id(parameter))) is not None
    ]
