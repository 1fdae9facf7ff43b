"""A formula in compiled kernels: traced, looked up or compiled, compared once, and launched.

A formula is traced anew at each event, some ten microseconds, so that whatever it reads of its
plugin (a schedule's strength, a branch on it) is what it is now. What is compiled is kept by its
operations alone: its numbers are arguments.
"""

import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, TypeAlias

import torch

from regplug.kernels import backends
from regplug.kernels.backends import Backend, Columns, Run
from regplug.kernels.expression import Expression, Recording
from regplug.kernels.operations import OPERATIONS
from regplug.kernels.samples import disagreement
from regplug.kernels.symbols import Symbol, Tracing, UntraceableError
from regplug.kernels.tables import Table, lie_alike

__all__ = ["Columns", "Engine", "Formula", "Reference"]

Formula: TypeAlias = Callable[..., Any]
"""Given a symbol for each column: the symbol of the result."""

Reference: TypeAlias = Callable[[list[list[torch.Tensor]]], Any]
"""Does the same to columns by torch's own operations, in place."""

_TABLES = 64  # as many loops over other tensors are remembered


class Engine:
    """The kernels of one formula.

    Args:
        name: the plugin's, for messages.
        kernels: one of :data:`regplug.kernels.choice.KERNELS`.

    Attributes:
        why_not: why no kernel can be made of the formula, None as long as one may be.
        runs: each kernel that was made, None for one that is not used.
    """

    def __init__(self, name: str, kernels: str) -> None:
        self._name = name
        self._kernels = kernels
        self.why_not: str | None = None
        self.runs: dict[Any, Run | None] = {}
        self._tables: dict[Any, Table] = {}

    def apply(
        self,
        formula: Formula,
        columns: Columns,
        target: int,
        reference: Reference,
        scalars: Columns = (),
        nonnegative: Collection[int] = (),
    ) -> Sequence[int]:
        """Execute a formula in one launch for each kind of tensors, as far as a kernel can.

        Args:
            formula: whose result is written.
            columns: lists of tensors of equal length, plain ones, those of a row alike in shape.
            target: the column that it is written to.
            reference: what a new kernel is compared with on a sample.
            scalars: further columns, of 0-d tensors: one for all elements of a row.
            nonnegative: columns that have no negative elements.

        Returns:
            The rows that are left, for :data:`Reference`'s operations to do.
        """
        rows = range(len(columns[0]))
        if not rows or self.why_not is not None or not _is_known(columns[0][0]):
            return rows
        table = self._table(columns, target)
        compare = partial(disagreement, reference=reference, nonnegative=nonnegative)
        if table.read(columns):
            done = self._run(table, columns, scalars, formula, target, compare)
            return rows if done is None else ()
        if len(rows) == 1:
            return rows
        left: list[int] = []
        for alike in _kinds(columns):
            own, few = _picked(columns, alike), _picked(scalars, alike)
            table = self._table(own, target)
            if not table.read(own) or (
                self._run(table, own, few, formula, target, compare) is None
            ):
                left += alike
        return sorted(left)

    def total(self, formula: Formula, columns: Columns, reference: Reference) -> Any:
        """Return the sum over all elements of what a formula gives, or None if no kernel can.

        Args:
            formula: whose result is a total, such as a penalty's value.
            columns: see :meth:`apply`; of one dtype and device.
            reference: returns the sum over columns by torch's own operations.
        """
        if not columns[0] or self.why_not is not None or not _is_known(columns[0][0]):
            return None
        table = self._table(columns, None)
        if not table.read(columns):
            return None
        compare = partial(disagreement, reference=reference)
        return self._run(table, columns, (), formula, None, compare)

    def describe(self, formula: Formula, columns: int, like: torch.Tensor) -> str:
        """Return the name of the kernel that tensors like ``like`` get, and why if it is none."""
        backend = backends.serving(like, (like.dtype,), self._kernels)
        if backend is None:
            return "foreach"
        if self.why_not is not None:
            return f"foreach ({self.why_not})"
        try:
            dtype = backend.dtype(like)
            recording, result = _traced(formula, columns, (), dtype, like.device, 0)
        except Exception as error:
            return f"foreach ({_why(error)})"
        if (why := backend.refuses(recording.expression(result, 0))) is not None:
            return f"foreach ({why})"
        for (*_, name, dtypes, _, _), run in self.runs.items():
            if run is None and name == backend.name and like.dtype in dtypes:
                return "foreach (its kernel came to something else)"
        return backend.name

    # --- one kind of tensors ---------------------------------------------------------------

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
        backend = backends.serving(first, table.dtypes, self._kernels)
        if backend is None or not backend.pays(table):
            return None
        dtypes = table.dtypes
        try:
            dtype = backend.dtype(first)
            traced = _traced(formula, len(columns), scalars, dtype, first.device, target)
        except Exception as error:  # the formula's own faults come again, from torch's operations
            self.why_not = _why(error)
            return None
        recording, result = traced
        of_scalars = tuple([column[0].dtype for column in scalars])
        steps = tuple(recording.steps)
        key = (steps, result, target, backend.name, dtypes, of_scalars, first.device)
        if key not in self.runs:
            expression = Expression(steps, result, recording.columns, target)
            self.runs[key] = self._proven(
                backend, expression, recording.numbers, columns, compare, scalars, of_scalars
            )
        run = self.runs[key]
        if run is None:
            return None
        found = run(recording.numbers, table, columns, scalars)
        if target is not None:
            torch.autograd.graph.increment_version(columns[target])
            return True
        return found

    def _table(self, columns: Columns, target: int | None) -> Table:
        key = (target, len(columns), len(columns[0]), id(columns[-1][0]))
        if key not in self._tables and len(self._tables) >= _TABLES:
            self._tables.clear()
        return self._tables.setdefault(key, Table())

    def _proven(
        self,
        backend: Backend,
        expression: Expression,
        numbers: Sequence[float],
        columns: Columns,
        compare: Callable[..., str | None],
        scalars: Columns,
        of_scalars: tuple[torch.dtype, ...],
    ) -> Run | None:
        """Return a new kernel, if it does the same as torch's operations to a sample of these."""
        if backend.refuses(expression) is not None:
            return None
        try:
            dtypes = tuple([column[0].dtype for column in columns])
            run = backend.kernel(expression, dtypes, of_scalars)

            def compiled(sample: list[list[torch.Tensor]]) -> Any:
                table = Table()
                if not table.read(sample):
                    raise AssertionError("a sample lies otherwise than what it is of")
                few = [[column[0]] * len(sample[0]) for column in scalars]
                return run(numbers, table, sample, few)

            why = compare(compiled, columns=columns, target=expression.target)
        except Exception as error:  # of a compiler, or of torch's operations on a sample
            why = f"{type(error).__name__}: {error}"
        if why is None:
            return run
        warnings.warn(
            f"{self._name}: its kernel for {backend.name} is not used ({why}); it goes on with "
            "torch's own operations, which are slower. Please report this, with the formula",
            stacklevel=2,
        )
        return None


_kind = attrgetter("dtype", "device")


def _is_known(tensor: torch.Tensor) -> bool:
    """Whether a tensor's device is one of those whose tensors have addresses."""
    return tensor.is_cpu or tensor.is_cuda


def _kinds(columns: Columns) -> list[list[int]]:
    """Return the rows of each kind: of one dtype and device, and alike in how they lie."""
    kinds: dict[Any, list[int]] = {}
    for row, tensors in enumerate(zip(*columns, strict=True)):
        key = (*map(_kind, tensors), lie_alike(*tensors))
        kinds.setdefault(key, []).append(row)
    return list(kinds.values())


def _picked(columns: Columns, rows: Iterable[int]) -> list[list[torch.Tensor]]:
    rows = list(rows)
    return [[column[row] for row in rows] for column in columns]


def _traced(
    formula: Formula,
    columns: int,
    scalars: Columns,
    dtype: torch.dtype,
    device: torch.device,
    target: int | None,
) -> tuple[Recording, int]:
    tracing = Tracing(dtype, device, OPERATIONS)
    symbols = [tracing.column() for _ in range(columns)]
    symbols += [tracing.column("scalar") for _ in scalars]
    result = formula(*symbols)
    if type(result) is not Symbol:
        raise UntraceableError(f"its result is a {type(result).__name__} that does not depend on w")
    if (result.kind == "total") != (target is None):
        raise UntraceableError("its result is no sum" if target is None else "its result is a sum")
    place = result.place if target is None else tracing.place(result)
    return tracing.recording, place


def _why(error: Exception) -> str:
    if isinstance(error, UntraceableError):
        return str(error)
    return f"it can't be traced: {type(error).__name__}"
