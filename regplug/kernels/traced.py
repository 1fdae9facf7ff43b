"""A formula called with symbols: what comes of it, and why nothing does."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from regplug.kernels.backends import Columns
from regplug.kernels.expression import Recording
from regplug.kernels.operations import OPERATIONS
from regplug.kernels.symbols import Symbol, Tracing, UntraceableError

__all__ = ["Formula", "traced", "why_untraceable"]

Formula: TypeAlias = Callable[..., Any]
"""Given a symbol for each column: the symbol of the result."""


def traced(
    formula: Formula,
    columns: int,
    scalars: Columns,
    dtype: torch.dtype,
    device: torch.device,
    target: int | None,
) -> tuple[Recording, int]:
    """Return what a formula does, and the place of its result.

    Args:
        formula: called once.
        columns: how many it takes.
        scalars: further ones, of 0-d tensors.
        dtype: in which the kernel will compute.
        device: of the tensors.
        target: the column that gets the result; None if that is a sum.

    Raises:
        UntraceableError: it does what is not known here to be element by element; what else it
            raises is its own.
    """
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


def why_untraceable(error: Exception) -> str:
    """Return what a formula's author should read of an error of :func:`traced`."""
    if isinstance(error, UntraceableError):
        return str(error)
    return f"it can't be traced: {type(error).__name__}"
