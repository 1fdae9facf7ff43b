"""What is measured of the covered weights: zeros and norm of each, and a histogram of them all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from regplug.backend import shards
from regplug.backend.blocks import batches
from regplug.backend.precision import HALVES
from regplug.backend.sums import Sum, resolve, wide
from regplug.errors import SelectionError
from regplug.selection.coverage import Covered
from regplug.selection.in_use import in_use
from regplug.selection.where import Selection
from regplug.view import SessionView

__all__ = ["Histogram", "LayerRow", "Record", "covered", "extent", "histogram", "layer_rows"]

_BINS = 641
# In units of the root mean square when the recorder was made; an odd number of bins has one for 0.
_SPREAD = 16.0


@dataclass(frozen=True)
class LayerRow:
    """One parameter at one step: how many of its weights are exactly 0, and its 2-norm.

    Attributes:
        step: real steps that were completed.
        layer: the parameter's name.
        weights: how many it has, over all shards.
        zeros: how many of them are exactly 0.
        norm: their Euclidean norm.
    """

    step: int
    layer: str
    weights: int
    zeros: int
    norm: float


@dataclass(frozen=True)
class Histogram:
    """Counts of weights in equal bins over ``[-limit, limit]``; the outer ones hold all beyond.

    Attributes:
        step: when it was taken.
        limit: where the bins end.
        counts: the number of weights in each.
    """

    step: int
    limit: float
    counts: list[int]


class Record(Protocol):
    """What was recorded of a run. A :class:`regplug.report.Recorder` is one."""

    @property
    def session(self) -> SessionView:
        """Whose record it is."""

    @property
    def rows(self) -> Sequence[Mapping[str, float]]:
        """A mapping for each recorded step."""

    @property
    def layers(self) -> Sequence[LayerRow]:
        """A row for each covered parameter at each of these steps."""

    @property
    def before(self) -> Histogram:
        """The histogram of the covered weights when the record began."""

    @property
    def after(self) -> Histogram | None:
        """That of its end, if it has come."""

    @property
    def missing(self) -> Sequence[str]:
        """What could not be written, and why."""


def covered(session: SessionView) -> list[Covered]:
    """Return the weights that are looked at: those in use, or whatever there is if none are."""
    for where in ("weights", "all"):
        try:
            return in_use(session.coverage(Selection(where))).trainable
        except SelectionError:
            continue
    return []


def extent(entries: Sequence[Covered]) -> float:
    """Return how far from 0 a histogram of these weights is to reach."""
    squares = []
    with torch.no_grad():
        for entry in entries:
            w = shards.local(entry.parameter)
            norm = torch.linalg.vector_norm(w, dtype=_wide(w))
            squares.append((entry.parameter, wide(norm).square()))
    if not squares:
        return 1.0
    weights = sum(entry.parameter.numel() for entry in entries)
    mean = resolve([Sum(squares, factor=1 / max(weights, 1))])[0]
    return _SPREAD * mean**0.5 if 0 < mean < float("inf") else 1.0


def layer_rows(session: SessionView) -> list[LayerRow]:
    """Measure each covered parameter. A collective where they are sharded."""
    entries = covered(session)
    sums = []
    with torch.no_grad():
        for entry in entries:
            w = shards.local(entry.parameter)
            zeros = w.numel() - torch.count_nonzero(w)
            square = wide(torch.linalg.vector_norm(w, dtype=_wide(w))).square()
            sums += [
                Sum([(entry.parameter, zeros)]),
                Sum([(entry.parameter, square)]),
            ]
    totals = resolve(sums)
    return [
        LayerRow(session.steps, entry.name, entry.parameter.numel(), round(zeros), square**0.5)
        for entry, zeros, square in zip(entries, totals[::2], totals[1::2], strict=True)
    ]


def histogram(session: SessionView, entries: Sequence[Covered], limit: float) -> Histogram:
    """Count the weights of ``entries`` in bins over ``[-limit, limit]``."""
    by_layout: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
    with torch.no_grad():
        for entry in entries:
            w: Any = entry.parameter
            # One sum for all that is sharded alike.
            key = (w.device_mesh, w.placements) if shards.is_dtensor(w) else None
            none = torch.zeros(_BINS, dtype=torch.float64, device="cpu")
            _, counts = by_layout.setdefault(key, (w, none))
            for ((piece,),) in batches([[shards.local(w)]]):
                clamped = piece.float().clamp(-limit, limit)
                counts += torch.histc(clamped, _BINS, -limit, limit).cpu()
    numbers = [(w, counts.tolist()) for w, counts in by_layout.values()]
    sums = [Sum((w, counts[place]) for w, counts in numbers) for place in range(_BINS)]
    totals = [round(total) for total in resolve(sums)]
    return Histogram(session.steps, limit, totals)


def _wide(w: torch.Tensor) -> torch.dtype:
    return torch.float32 if w.dtype in HALVES else w.dtype
