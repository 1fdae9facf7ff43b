"""The kernels of formulas of rows or columns: traced, compared with torch, launched."""

import functools
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

import torch

from regplug.backend.layouts import Layout
from regplug.kernels import cuda
from regplug.kernels.row_samples import disagreement_on_rows
from regplug.kernels.row_source import names_of, row_source_of
from regplug.kernels.row_symbols import RowExpression, RowTracing, traced_rows
from regplug.kernels.row_tables import RowTable, are_plain, axis_of, geometry_of
from regplug.kernels.sources import executed
from regplug.kernels.symbols import UntraceableError

__all__ = ["RowEngine"]

Columns: TypeAlias = Sequence[Sequence[torch.Tensor]]
Formula: TypeAlias = Callable[..., Any]

_PLANS = 64


class _Kind:
    """Rows of columns that are worked on alike: of one dtype and device, and dimensions."""

    def __init__(self, axis: int, ndim: int) -> None:
        self.axis, self.ndim = axis, ndim
        self.rows: list[int] = []
        self.geometries: list[tuple[int, ...]] = []


class RowEngine:
    """The kernels of one formula.

    Args:
        name: the plugin's, for messages.
        orientation: ``"rows"`` or ``"columns"``.

    Attributes:
        why_not: why there is no kernel of it, if that is known by now.
    """

    def __init__(self, name: str, orientation: str) -> None:
        self._name, self._orientation = name, orientation
        self._plans: dict[Any, tuple[Any, list[_Kind], list[int]]] = {}
        self._tables: dict[Any, RowTable] = {}
        self._proven: dict[Any, bool] = {}
        self.why_not: str | None = None

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
        found: dict[Any, list[_Kind]] = {}
        unserved = list(left)
        for kind in kinds:
            traced = self._traced(formula, kind, columns, scalars, target)
            if traced is None or not self._proves(
                formula, traced, kind, columns, scalars, nonnegative
            ):
                unserved += kind.rows
                continue
            first = kind.rows[0]
            like = [(column[first].dtype, column[first].device) for column in columns]
            found.setdefault((*traced, *like), []).append(kind)
        for (expression, numbers, *_), alike in found.items():
            rows = [row for kind in alike for row in kind.rows]
            geometries = tuple(g for kind in alike for g in kind.geometries)
            own, few = _picked(columns, rows), _picked(scalars, rows)
            self._launch(expression, numbers, geometries, own, few)
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
        if len(self._plans) >= _PLANS:
            self._plans.clear()
            self._tables.clear()
        kinds: dict[Any, _Kind] = {}
        left: list[int] = []
        for row, layout in enumerate(layouts):
            tensors = [column[row] for column in columns]
            axis = axis_of(self._orientation, layout)
            geometry = None
            if axis is not None and are_plain(columns, row):
                geometry = geometry_of(tensors, axis)
            if geometry is None or not cuda.takes([t.dtype for t in tensors]):
                left.append(row)
            elif tensors[0].numel():
                alike = (axis, tensors[0].ndim, tensors[0].device, *(t.dtype for t in tensors))
                kind = kinds.setdefault(alike, _Kind(axis or 0, tensors[0].ndim))
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
        tracing = RowTracing(cuda.computed_in(like.dtype), like.device, kind.ndim, axis)
        try:
            traced = traced_rows(formula, tracing, len(columns), len(scalars), target)
        except Exception as error:  # its own faults come again, from torch's operations
            known = isinstance(error, UntraceableError)
            self.why_not = str(error) if known else f"it can't be traced: {type(error).__name__}"
            return None
        expression = traced[0]
        if cuda.is_interpreted() and not cuda.FROM_LIBRARY.isdisjoint(names_of(expression)):
            self.why_not = "Triton's interpreter has not its functions"
            return None
        return traced

    # --- one launch ------------------------------------------------------------------------

    def _launch(
        self,
        expression: RowExpression,
        numbers: Sequence[float],
        geometries: tuple[tuple[int, ...], ...],
        columns: Columns,
        scalars: Columns,
    ) -> None:
        device = columns[0][0].device
        key = (expression, geometries, device)
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = RowTable(geometries, device)
        kernel = _compiled(
            expression,
            tuple(column[0].dtype for column in columns),
            tuple(column[0].dtype for column in scalars),
        )
        with torch.cuda.device(device) if device.type == "cuda" else cuda.quiet():
            kernel[(table.programs,)](
                table.addresses([*columns, *scalars]),
                table.shapes,
                table.firsts,
                table.rows,
                table.numbers(numbers),
                len(geometries),
                BLOCK=table.block,
                NESTED=table.is_nested,
                num_warps=min(max(table.block // 256, 1), 8),
            )

    def _proves(
        self,
        formula: Formula,
        traced: tuple[RowExpression, tuple[float, ...]],
        kind: _Kind,
        columns: Columns,
        scalars: Columns,
        nonnegative: Collection[int],
    ) -> bool:
        """Compare a new kernel with torch's operations, on a sample of these very tensors."""
        first = kind.rows[0]
        like = [(column[first].dtype, column[first].device) for column in columns]
        key = (traced[0], kind.axis, kind.ndim, *like)
        if key not in self._proven:
            few = [column[first] for column in scalars]

            def compiled(sample: list[torch.Tensor]) -> None:
                geometry = geometry_of(sample, kind.axis)
                if geometry is None:
                    raise AssertionError("a sample lies otherwise than what it is of")
                own, fixed = [[t] for t in sample], [[t] for t in few]
                self._launch(*traced, (geometry,), own, fixed)

            def by_torch(sample: list[torch.Tensor]) -> None:
                turned = kind.axis != int(self._orientation == "columns")
                seen = [t.transpose(0, 1) if turned else t for t in sample]
                wide = [t.float() if t.dtype.itemsize < 4 else t for t in seen]
                seen[traced[0].target].copy_(formula(*wide, *few))

            sample = [column[first] for column in columns]
            try:
                why = disagreement_on_rows(
                    compiled, by_torch, sample, kind.axis, traced[0].target, nonnegative
                )
            except Exception as error:  # of the compiler, or of torch's operations on a sample
                why = f"{type(error).__name__}: {error}"
            if why is not None:
                warnings.warn(
                    f"{self._name}: its kernel for Triton is not used ({why}); it goes on with "
                    "torch's own operations, which are slower. Please report this, with the "
                    "formula",
                    stacklevel=2,
                )
            self._proven[key] = why is None
        return self._proven[key]


@functools.cache
def _compiled(
    expression: RowExpression, dtypes: tuple[torch.dtype, ...], scalars: tuple[torch.dtype, ...]
) -> Any:
    """Return the kernel of an expression; Triton compiles it when it is first launched."""
    return executed(row_source_of(expression, dtypes, scalars))["kernel"]


def _picked(columns: Columns, rows: Sequence[int]) -> list[list[torch.Tensor]]:
    return [[column[row] for row in rows] for column in columns]
