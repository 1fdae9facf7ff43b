"""What constraints have in common: after each step, weights are put back into a set."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from regplug import (
    Elementwise,
    Layout,
    RowKernel,
    Selective,
    SessionView,
    full,
    hookimpl,
    in_use,
    local,
    part,
    widened,
    zeros,
)

__all__ = ["Constraint"]


class Constraint(Selective):
    """Base of the plugins that replace each weight by its nearest point in a set, or some point.

    A subclass says which (:meth:`constrained`), and whether it acts element by element
    (:attr:`separable`). If not, it is given whole weights: sharded ones are gathered, one
    collective each, and this rank's part is written back.
    """

    reads_gradients = False
    by_pattern = True
    separable = False

    orientation: str | None = None
    """``"rows"`` or ``"columns"`` for what is to be given with outputs first and inputs second, as
    :attr:`regplug.Penalty.orientation` says."""

    _rows: tuple[object, RowKernel] | None = None

    order_matters = True  # the one that acts last has the last word

    def __init__(self, *, where: object = "weights", name: str | None = None) -> None:
        self.where = where  # type: ignore[assignment]
        self.name = name
        self._run: Elementwise | None = None

    def constrained(self, w: torch.Tensor) -> torch.Tensor:
        """Return the point that replaces ``w``, halves given in float32; ``w`` is not changed."""
        raise NotImplementedError

    @hookimpl
    def on_attach(self, session: SessionView) -> None:
        """Check the selection. The weights are first changed by the first step."""
        self._run = None  # another session may have other kernels
        session.coverage(self._selection)

    @hookimpl
    def after_step(self, session: SessionView) -> None:
        """Put the weights that took part in the step back into the set."""
        if self.separable:
            updates = session.updates(self._selection)
            self._elementwise(session)(
                self.constrained, [local(w) for _, weights, _ in updates for w in weights]
            )
            return
        layouts = session.coverage(self._selection).layouts if self.orientation else {}
        for _, weights, _ in self.by_part(session):
            rows: Sequence[int] = range(len(weights))
            if self.orientation is not None:
                kernel = self._row_kernel(self.orientation, session)
                if kernel.serves(*weights):
                    found = [layouts.get(w) for w in weights]
                    rows = kernel.apply(self.constrained, [weights], found)
            for w in (weights[row] for row in rows):
                wide = widened(full(w))
                local(w).copy_(
                    part(self._constrained(wide, layouts.get(w) if layouts else None), w)
                )

    def _elementwise(self, session: SessionView) -> Elementwise:
        if self._run is None:
            self._run = Elementwise(self.name, session.kernels)
        return self._run

    def _row_kernel(self, orientation: str, session: SessionView) -> RowKernel:
        """Return what puts whole groups back in one launch, where that can be."""
        asked = (orientation, session.kernels)
        if self._rows is None or self._rows[0] != asked:
            self._rows = asked, RowKernel(self.name, *asked)
        return self._rows[1]

    def _constrained(self, w: torch.Tensor, layout: Layout | None) -> torch.Tensor:
        if layout is None or self.orientation is None:
            return self.constrained(w)
        found = self.constrained(layout.arranged(w, self.orientation))
        return layout.restored(found, self.orientation)

    @hookimpl
    def on_metrics(self, session: SessionView) -> Mapping[str, Any]:
        """Return the bound, and the share of the covered weights that are exactly 0."""
        used = in_use.in_use(session.coverage(self._selection))
        by_part = self.figures_by_part(session)
        return {**self.strengths(), **by_part, "zeros": zeros(used, session.kernels)}

    def notes(self, session: SessionView) -> Sequence[str]:
        """Return what is covered if it is little, what is special, and what executes it."""
        found = super().notes(session)
        covered = session.coverage(self._selection).trainable
        if self.orientation is not None:
            rows = self._row_kernel(self.orientation, session)
            weights = [entry.parameter for entry in covered]
            by = rows.describe(*weights) if weights else "foreach"
        elif self.separable:
            parts = [local(entry.parameter) for entry in covered]
            by = self._elementwise(session).describe(self.constrained, 1, parts)
        else:
            return found
        return found if by.startswith("foreach") else [*found, f"in one kernel ({by})"]
