"""The compilers that make kernels of expressions, and which of them serves which tensors."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import torch

from regplug.kernels import cpu, cuda
from regplug.kernels.expression import Expression
from regplug.kernels.row_symbols import RowExpression
from regplug.kernels.row_tables import RowRun
from regplug.kernels.tables import Sizes, Table

__all__ = ["Backend", "Columns", "Numba", "Run", "Triton", "serving"]

Columns: TypeAlias = Sequence[Sequence[torch.Tensor]]


Run: TypeAlias = Callable[[Sequence[float], Table, Columns, Columns], Any]
"""Given numbers, a table, columns and scalars: executes an expression; the sum if it is one."""


class Backend(Protocol):
    """One compiler.

    Attributes:
        name: as users know it.
    """

    name: str

    def dtype(self, like: torch.Tensor) -> torch.dtype:
        """Return the dtype in which a kernel computes for tensors like this."""

    def takes(self, dtypes: Sequence[torch.dtype]) -> bool:
        """Whether there are kernels for columns of these dtypes."""

    def pays(self, sizes: Sizes) -> bool:
        """Whether a launch pays for tensors of these sizes."""

    def table(self) -> Table:
        """Return a new table, as its kernels read one."""

    def refuses(self, expression: Expression) -> str | None:
        """Return why torch's own operations are to be used for an expression, or None."""

    def kernel(
        self,
        expression: Expression,
        dtypes: tuple[torch.dtype, ...],
        scalars: tuple[torch.dtype, ...],
    ) -> Run:
        """Return what executes an expression for columns, and 0-d tensors, of these dtypes."""

    def row_kernel(
        self,
        expression: RowExpression,
        dtypes: tuple[torch.dtype, ...],
        scalars: tuple[torch.dtype, ...],
    ) -> RowRun:
        """Return the same for an expression of rows."""


class Numba(cpu.Numba):
    """Numba, for expressions of elements and of rows."""

    def row_kernel(
        self,
        expression: RowExpression,
        dtypes: tuple[torch.dtype, ...],
        scalars: tuple[torch.dtype, ...],
    ) -> RowRun:
        from regplug.kernels.row_cpu import launching

        return launching(expression, dtypes, scalars)


class Triton(cuda.Triton):
    """Triton, for expressions of elements and of rows."""

    def row_kernel(
        self,
        expression: RowExpression,
        dtypes: tuple[torch.dtype, ...],
        scalars: tuple[torch.dtype, ...],
    ) -> RowRun:
        from regplug.kernels.row_cuda import launching

        return launching(expression, dtypes, scalars)


_NUMBA: Backend = Numba()
_TRITON: Backend = Triton()


def serving(like: torch.Tensor, dtypes: Sequence[torch.dtype], kernels: str) -> Backend | None:
    """Return the backend for tensors like this, if there is one and it may be used.

    Args:
        like: gives the device.
        dtypes: of the columns.
        kernels: one of :data:`regplug.kernels.choice.KERNELS`.
    """
    if kernels == "foreach":
        return None
    if like.is_cpu:
        if kernels == "triton":  # its interpreter, which is there for tests
            return _TRITON if cuda.is_interpreted() and cuda.takes(dtypes) else None
        return _NUMBA if cpu.takes(dtypes) and cpu.is_installed() else None
    if like.is_cuda and kernels != "numba":
        return _TRITON if cuda.takes(dtypes) and cuda.is_installed() else None
    return None
