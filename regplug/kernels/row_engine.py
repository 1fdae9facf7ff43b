"""The kernels of formulas of rows or columns: traced, compared with torch, launched."""

from collections.abc import Collection, Sequence
from typing import Any

import torch

from regplug.backend.layouts import Layout
from regplug.kernels import backends
from regplug.kernels.backends import Backend, Columns
from regplug.kernels.proof import Prover
from regplug.kernels.row_samples import disagreement_on_rows
from regplug.kernels.row_symbols import RowExpression, RowTracing, traced_rows
from regplug.kernels.row_tables import TABLES, RowRun, are_plain, axis_of, geometry_of
from regplug.kernels.traced import Formula

__all__ = ["RowEngine"]


class _Kind:
    """Rows of columns that are worked on alike: of one dtype and device, and dimensions."""

    def __init__(self, backend: Backend, axis: int, ndim: int) -> None:
        self.backend, self.axis, self.ndim = backend, axis, ndim
        self.rows: list[int] = []
        self.geometries: list[tuple[int, ...]] = []


class RowEngine(Prover):
    """The kernels of one formula of rows, or columns: see :class:`Prover`.

    Args:
        name: the plugin's, for messages.
        orientation: ``"rows"`` or ``"columns"``.
        kernels: one of :data:`regplug.kernels.choice.KERNELS`.
    """

    def __init__(self, name: str, orientation: str, kernels: str) -> None:
        super().__init__(name, kernels)
        self._orientation = orientation
        self._plans: dict[Any, tuple[Any, list[_Kind], list[int]]] = {}
        self._made: dict[Any, RowRun] = {}

    def apply(
        self,
        formula: Formula,
        columns: Columns,
        layouts: Sequence[Layout | None],
        target: int,
        scalars: Columns,
        nonnegative: Collection[int],
    ) -> Sequence[int]:
        """Execute a formula on all weights: see :meth:`regplug.RowKernel.apply`."""
        kinds, left = self._plan(columns, layouts or [None] * len(columns[0]), target)
        found: dict[Any, tuple[RowRun, list[_Kind]]] = {}
        unserved = list(left)
        for kind in kinds:
            traced = self._traced(formula, kind, columns, scalars, target)
            run = None
            if traced is not None:
                run = self._run(formula, traced, kind, columns, scalars, nonnegative)
            if traced is None or run is None:
                unserved += kind.rows
                continue
            device = columns[0][kind.rows[0]].device
            found.setdefault((run, traced[1], device), (run, []))[1].append(kind)
        for (_, numbers, _), (run, alike) in found.items():
            rows = [row for kind in alike for row in kind.rows]
            geometries = tuple(g for kind in alike for g in kind.geometries)
            own, few = _picked(columns, rows), _picked(scalars, rows)
            run(numbers, geometries, own, few)
            torch.autograd.graph.increment_version(own[target])
        return sorted(unserved)

    # --- what is alike ---------------------------------------------------------------------

    def _plan(
        self, columns: Columns, layouts: Sequence[Layout | None], target: int
    ) -> tuple[list[_Kind], list[int]]:
        """Return the kinds of rows that kernels can go through, and the rows that none can."""
        seen = (
            [
                [(t.dtype, t.device, t.shape, t.stride(), type(t)) for t in column]
                for column in columns
            ],
            list(layouts),
        )
        key = (target, len(columns), id(columns[-1][0]))
        known = self._plans.get(key)
        if known is not None and known[0] == seen:
            return known[1], known[2]
        if len(self._plans) >= TABLES:
            self._plans.clear()
        kinds: dict[Any, _Kind] = {}
        left: list[int] = []
        for row, layout in enumerate(layouts):
            first, *_ = tensors = [column[row] for column in columns]
            axis = axis_of(self._orientation, layout)
            geometry = backend = None
            if axis is not None and are_plain(columns, row):
                geometry = geometry_of(tensors, axis)
                backend = backends.serving(first, [t.dtype for t in tensors], self._kernels)
            if geometry is None or backend is None:
                left.append(row)
            elif first.numel():
                alike = (axis, first.ndim, first.device, *(t.dtype for t in tensors))
                kind = kinds.setdefault(alike, _Kind(backend, axis or 0, first.ndim))
                kind.rows.append(row)
                kind.geometries.append(geometry)
        self._plans[key] = seen, list(kinds.values()), left
        return list(kinds.values()), left

    def _traced(
        self, formula: Formula, kind: _Kind, columns: Columns, scalars: Columns, target: int
    ) -> tuple[RowExpression, tuple[float, ...]] | None:
        like = columns[0][kind.rows[0]]
        # As the formula sees it, whatever layer it is of.
        axis = int(self._orientation == "columns")
        tracing = RowTracing(kind.backend.dtype(like), like.device, kind.ndim, axis)
        return self.recorded(traced_rows, formula, tracing, len(columns), len(scalars), target)

    # --- one kernel ------------------------------------------------------------------------

    def _run(
        self,
        formula: Formula,
        traced: tuple[RowExpression, tuple[float, ...]],
        kind: _Kind,
        columns: Columns,
        scalars: Columns,
        nonnegative: Collection[int],
    ) -> RowRun | None:
        """Return what executes a formula on a kind of rows, compared with torch if it is new."""
        first = kind.rows[0]
        expression, backend = traced[0], kind.backend
        dtypes, of_scalars = (
            tuple([column[first].dtype for column in some]) for some in (columns, scalars)
        )
        device = columns[0][first].device
        key = (expression, kind.axis, kind.ndim, dtypes, of_scalars, device)
        if key not in self.runs:

            def made() -> tuple[RowRun, str | None]:
                of = (backend.name, expression, dtypes, of_scalars)
                if of not in self._made:
                    self._made[of] = backend.row_kernel(expression, dtypes, of_scalars)
                return self._made[of], self._disagreement(
                    formula, self._made[of], traced, kind, columns, scalars, nonnegative
                )

            self.runs[key] = self.proven(backend, expression, dtypes, made)
        return self.runs[key]  # type: ignore[no-any-return]

    def _disagreement(
        self,
        formula: Formula,
        run: RowRun,
        traced: tuple[RowExpression, tuple[float, ...]],
        kind: _Kind,
        columns: Columns,
        scalars: Columns,
        nonnegative: Collection[int],
    ) -> str | None:
        """Compare a new kernel with torch's operations, on a sample of these very tensors."""
        first, target = kind.rows[0], traced[0].target
        assert target is not None
        few = [column[first] for column in scalars]

        def compiled(sample: list[torch.Tensor]) -> None:
            geometry = geometry_of(sample, kind.axis)
            if geometry is None:
                raise AssertionError("a sample lies otherwise than what it is of")
            run(traced[1], (geometry,), [[t] for t in sample], [[t] for t in few])

        def by_torch(sample: list[torch.Tensor]) -> None:
            turned = kind.axis != int(self._orientation == "columns")
            seen = [t.transpose(0, 1) if turned else t for t in sample]
            wide = [t.float() if t.dtype.itemsize < 4 else t for t in seen]
            seen[target].copy_(formula(*wide, *few))

        sample = [column[first] for column in columns]
        return disagreement_on_rows(compiled, by_torch, sample, kind.axis, target, nonnegative)


def _picked(columns: Columns, rows: Sequence[int]) -> list[list[torch.Tensor]]:
    return [[column[row] for row in rows] for column in columns]
