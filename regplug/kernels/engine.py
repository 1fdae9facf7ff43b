"""A formula in compiled kernels: traced, looked up or compiled, compared once, and launched.

A formula is traced anew at each event, some ten microseconds, so that whatever it reads of its
plugin (a schedule's strength, a branch on it) is what it is now. What is compiled is kept by its
operations alone: its numbers are arguments.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, TypeAlias

import torch

from regplug.backend import shards
from regplug.backend.blocks import PLAIN
from regplug.kernels import backends
from regplug.kernels.backends import Columns, Run
from regplug.kernels.expression import Expression
from regplug.kernels.proof import Prover
from regplug.kernels.samples import disagreement
from regplug.kernels.tables import Table, lie_alike
from regplug.kernels.traced import Formula, traced, why_untraceable

__all__ = ["Columns", "Engine", "Formula", "Reference"]

Reference: TypeAlias = Callable[..., Any]
"""Given a list of tensors for each column: does the same by torch's own operations, in place."""

_TABLES = 64  # as many loops over other tensors are remembered


class Engine(Prover):
    """The kernels of one formula that acts element by element: see :class:`Prover`."""

    def __init__(self, name: str, kernels: str) -> None:
        super().__init__(name, kernels)
        self._tables: dict[Any, Table] = {}

    def apply(
        self,
        formula: Formula,
        columns: Columns,
        target: int,
        reference: Reference,
        scalars: Columns = (),
        nonnegative: Collection[int] = (),
        *,
        fresh: bool = False,
        by_row: bool = False,
    ) -> Sequence[int]:
        """Execute a formula in one launch for each kind of tensors, as far as a kernel can.

        Args:
            formula: whose result is written.
            columns: lists of tensors of equal length, those of a row alike in shape. Of what is
                spread over ranks, this rank's part is worked on.
            target: the column that it is written to.
            reference: what a new kernel is compared with on a sample.
            scalars: further columns, of 0-d tensors: one for all elements of a row.
            nonnegative: columns that have no negative elements.
            fresh: whether the target is new memory, of any content, which nothing reads.
            by_row: whether the reference is to be told, as ``row=``, of which row the scalars are
                that a sample has.

        Returns:
            The rows that are left, for :data:`Reference`'s operations to do.
        """

        def compare(compiled: Any, row: int, **given: Any) -> str | None:
            told = partial(reference, row=row) if by_row else reference
            return disagreement(
                compiled, reference=told, nonnegative=nonnegative, fresh=fresh, **given
            )

        return self._by_kinds(formula, columns, target, compare, scalars)[1]

    def total(
        self, formula: Formula, columns: Columns, reference: Reference
    ) -> tuple[Any, Sequence[int]]:
        """Return the sum over all elements of what a formula gives, as far as a kernel can.

        Args:
            formula: whose result is a total, such as a penalty's value.
            columns: see :meth:`apply`; of one device.
            reference: returns the sum over columns by torch's own operations.

        Returns:
            A number, or a 0-d tensor on a device, and the rows that are not in it.
        """

        def compare(compiled: Any, row: int, **given: Any) -> str | None:
            return disagreement(compiled, reference=reference, **given)

        found, left = self._by_kinds(formula, columns, None, compare)
        return sum(found[1:], start=found[0]) if found else 0.0, left

    def describe(self, formula: Formula, columns: int, like: torch.Tensor) -> str:
        """Return the name of the kernel that tensors like ``like`` get, and why if it is none."""
        backend = self.backend(like)
        if backend is not None and self.why_not is None:
            try:
                dtype = backend.dtype(like)
                recording, result = traced(formula, columns, (), dtype, like.device, 0)
            except Exception as error:
                return f"foreach ({why_untraceable(error)})"
            if (why := backend.refuses(recording.expression(result, 0))) is not None:
                return f"foreach ({why})"
        return self.executed_by(like)

    # --- one kind of tensors ---------------------------------------------------------------

    def _by_kinds(
        self,
        formula: Formula,
        columns: Columns,
        target: int | None,
        compare: Callable[..., str | None],
        scalars: Columns = (),
    ) -> tuple[list[Any], Sequence[int]]:
        """Return what was found for each kind of tensors, and the rows that are left."""
        rows = range(len(columns[0]))
        if not rows or self.why_not is not None or not _is_known(columns[0][0]):
            return [], rows
        whole = columns
        table = self._table(columns, target)
        is_read = table.read(columns, scalars)
        if not is_read and (columns := parts_of(whole)) is not whole:
            table = self._table(columns, target)
            is_read = table.read(columns, scalars)
        if is_read:
            done = self._run(table, columns, scalars, formula, target, partial(compare, row=0))
            return ([], rows) if done is None else ([done], ())
        if len(rows) == 1:
            return [], rows
        found: list[Any] = []
        left: list[int] = []
        for alike in _kinds(columns, scalars):
            own, few = _picked(columns, alike), _picked(scalars, alike)
            table = self._table(own, target)
            done = None
            if table.read(own, few):
                done = self._run(table, own, few, formula, target, partial(compare, row=alike[0]))
            if done is None:
                left += alike
            else:
                found.append(done)
        return found, sorted(left)

    def _run(
        self,
        table: Table,
        columns: Columns,
        scalars: Columns,
        formula: Formula,
        target: int | None,
        compare: Callable[..., str | None],
    ) -> Any:
        """Execute a formula; return the sum or True, or None if it can't be, or does not pay."""
        first = columns[0][0]
        dtypes, of_scalars = table.dtypes, table.of_scalars
        backend = backends.serving(first, dtypes, self._kernels)
        if backend is None or not backend.pays(table.sizes):
            return None
        dtype = backend.dtype(first)
        found = self.recorded(traced, formula, len(columns), scalars, dtype, first.device, target)
        if found is None:
            return None
        recording, result = found
        steps = tuple(recording.steps)
        key = (steps, result, target, backend.name, dtypes, of_scalars, first.device)
        if key not in self.runs:
            expression = Expression(steps, result, recording.columns, target)

            def made() -> tuple[Run, str | None]:
                run = backend.kernel(expression, dtypes, of_scalars)

                def compiled(sample: list[list[torch.Tensor]]) -> Any:
                    table = backend.table()
                    few = [[column[0]] * len(sample[0]) for column in scalars]
                    if not table.read(sample, few):
                        raise AssertionError("a sample lies otherwise than what it is of")
                    return run(recording.numbers, table, sample, few)

                return run, compare(compiled, columns=columns, target=target)

            self.runs[key] = self.proven(backend, expression, dtypes, made)
        run = self.runs[key]
        if run is None:
            return None
        total = run(recording.numbers, table, columns, scalars)
        if target is not None:
            torch.autograd.graph.increment_version(columns[target])
            return True
        return total

    def _table(self, columns: Columns, target: int | None) -> Table:
        key = (target, len(columns), len(columns[0]), id(columns[-1][0]))
        table = self._tables.get(key)
        if table is None:
            if len(self._tables) >= _TABLES:
                self._tables.clear()
            backend = self.backend(columns[0][0])
            table = self._tables[key] = Table() if backend is None else backend.table()
        return table


_kind = attrgetter("dtype", "device")
_plain = frozenset(PLAIN)


def parts_of(columns: Columns) -> Columns:
    """Return this rank's parts of tensors, ``columns`` itself where all are plain."""
    if all(_plain.issuperset(map(type, column)) for column in columns):
        return columns
    return [shards.locals_of(column) for column in columns]


def _is_known(tensor: torch.Tensor) -> bool:
    """Whether a tensor's device is one of those whose tensors have addresses."""
    return tensor.is_cpu or tensor.is_cuda


def _kinds(columns: Columns, scalars: Columns) -> list[list[int]]:
    """Return the rows of each kind: of one dtype and device, and alike in how they lie."""
    kinds: dict[Any, list[int]] = {}
    for row, every in enumerate(zip(*columns, *scalars, strict=True)):
        plain = _plain.issuperset(map(type, every))
        key = (*map(_kind, every), plain and lie_alike(*every[: len(columns)]))
        kinds.setdefault(key, []).append(row)
    return list(kinds.values())


def _picked(columns: Columns, rows: Iterable[int]) -> list[list[torch.Tensor]]:
    rows = list(rows)
    return [[column[row] for row in rows] for column in columns]
