"""What a selection covers of one optimizer's parameters."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from regplug.backend import shards
from regplug.backend.fragments import Fragment
from regplug.backend.layouts import Layout, layout_of
from regplug.backend.names import Named, named_parameters
from regplug.backend.words import listed, shown
from regplug.errors import SelectionError, UnsupportedError
from regplug.selection.where import Selection, Where

__all__ = ["Coverage", "Covered", "cover", "shared"]


@dataclass(frozen=True, eq=False)
class Covered:
    """One selected parameter of one optimizer."""

    name: str
    parameter: nn.Parameter
    group_index: int
    module: nn.Module
    named: Named | None = None

    @property
    def original(self) -> torch.Tensor:
        """The parameter itself, where this stands for what the model makes of it."""
        return self.parameter if self.named is None else self.named.parameter


class Coverage(Sequence[Covered]):
    """The selection within one optimizer's parameters, in the optimizer's order.

    A session makes it (``session.coverage(selection)``); it is a sequence of what is covered.

    Args:
        entries: what is covered: each has ``name``, ``parameter``, ``group_index`` and ``module``.
        lazy: what has no shape yet, and may be covered once it has: from its first forward on.
        where: the selection as it was given.

    >>> import regplug
    >>> model = nn.Linear(3, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with regplug.attach(model, optimizer, ["l1(1e-3)"]) as session:
    ...     covered = session.coverage(regplug.Selection("all"))
    >>> [entry.name for entry in covered], covered.weights
    (['weight', 'bias'], 8)
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
    def apart(self) -> bool:
        """Whether what is trained are other tensors than those that the model computes with."""
        return any(isinstance(entry.parameter, Fragment) for entry in self.entries)

    @property
    def outdated(self) -> bool:
        """Whether a lazy parameter has a shape by now, so that the selection is to be made anew."""
        return any(not is_lazy(entry.parameter) for entry in self.lazy)

    @property
    def names(self) -> list[str]:
        """The names of all that is, or may once be, covered, which ranks must have alike."""
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
    ids = {id(parameter) for group in groups for parameter in group["params"]}
    names = [named.name for named in named_parameters(model) if id(named.parameter) in ids]
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
        UnsupportedError: a weight is a sum over ranks that nobody has added up.
    """
    chosen, lazy = selection.sorted(model)
    entries, waiting = (_within(some, groups) for some in (chosen, lazy))
    for entry in entries:
        if shards.is_unsummed(entry.parameter):
            raise UnsupportedError(
                f"{entry.name} is a sum of what each rank has (placements "
                f"{shards.placements(entry.parameter)}), of which no rank knows the weight itself: "
                "redistribute it to Replicate() or Shard(…) before the optimizer is made, or "
                f"exclude it with where=[…, '!{entry.name}']"
            )
    if not waiting and not any(entry.parameter.requires_grad for entry in entries):
        updated = shared(model, groups)
        raise SelectionError(
            f"where={selection.where!r} selects {shown([*chosen, *lazy])}, none "
            f"of which this optimizer updates: it has {listed(updated)}"
        )
    return Coverage(entries, waiting, selection.where)


def _within(
    chosen: Iterable[Named], groups: Sequence[dict[str, list[torch.Tensor]]]
) -> list[Covered]:
    chosen_by_id = {id(named.parameter): named for named in chosen}
    return [
        Covered(named.name, named.parameter, index, named.modules[0], named)
        for index, group in enumerate(groups)
        for parameter in group["params"]
        if (named := chosen_by_id.get(id(parameter))) is not None
    ]
