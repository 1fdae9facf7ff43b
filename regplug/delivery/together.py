"""Penalties of the same weights as one formula: their sum by one reduction, their gradient in one.

A kernel reads each weight once, however many penalties there are.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from regplug.backend import shards
from regplug.backend.blocks import PLAIN
from regplug.backend.precision import widened
from regplug.kernels.choice import Choice
from regplug.kernels.kernel import Kernel

if TYPE_CHECKING:
    from regplug.kernels.backends import Columns

__all__ = ["Share", "choice_of", "made_gradients", "summed"]

# One penalty's part in a weight's gradient: its formula, and the factor before it.
Share: TypeAlias = tuple[Kernel, float]


def choice_of(shares: Sequence[Share]) -> Choice:
    """Return the kernels of what these penalties add up to."""
    (first, _), *others = shares
    if not others:
        return first.choice
    return first.choice.other(tuple(kernel for kernel, _ in shares))


def summed(shares: Sequence[Share], weights: Sequence[torch.Tensor]) -> tuple[Any, Sequence[int]]:
    """Return Σ factor·value(w) over this rank's parts of all weights, as far as a kernel can.

    Returns:
        A number, or a 0-d tensor on a device, and the rows that are not in it.
    """
    columns, counts = _columns(shares, weights)
    if columns is None:
        return 0.0, range(len(weights))
    # A factor before a single sum is exact; within it is rounded as elements are.
    outside, shares = (shares[0][1], [(shares[0][0], 1.0)]) if len(shares) == 1 else (1.0, shares)

    def added(w: Any, *companions: Any) -> Any:
        found = None
        for (kernel, factor), own in zip(shares, _each(companions, counts), strict=True):
            value = kernel.value(w, *own)
            _refuse_constant(value, "value")
            value = value if len(shares) == 1 else value * factor
            found = value if found is None else found + value
        return found

    def by_torch(sample: "Columns") -> Any:
        return sum(
            kernel.value(widened(w), *own) * factor
            for w, *companions in zip(*sample, strict=True)
            for (kernel, factor), own in zip(shares, _each(companions, counts), strict=True)
        )

    found, left = choice_of(shares).other("value").total(added, columns, by_torch)
    return found * outside, left


def made_gradients(
    choice: Choice,
    shares: Sequence[Share],
    weights: Sequence[torch.Tensor],
    of: Sequence[torch.Tensor],
    scale: torch.Tensor | float,
) -> tuple[list[torch.Tensor], Sequence[int]]:
    """Return scale·Σ factor·gradient(w) for each weight, as far as a kernel can: new tensors.

    Args:
        choice: see :func:`choice_of`.
        shares: of all of these weights; separable.
        weights: the values, as they were saved.
        of: the parameters, to which companions belong.
        scale: a number, or a 0-d tensor on the weights' device, which is not waited for.

    Returns:
        The gradients, and the rows in which there is none yet.
    """
    rows = range(len(weights))
    columns, counts = _columns(shares, of, weights)
    waits = isinstance(scale, torch.Tensor)
    if columns is None or (isinstance(scale, torch.Tensor) and not _is_one_number(scale)):
        return list(weights), rows
    made = [torch.empty_like(w) for w in columns[0]]

    def added(_: Any, w: Any, *others: Any) -> Any:
        companions, upstream = (others[:-1], others[-1]) if waits else (others, scale)
        found: Any = None
        for (kernel, factor), own in zip(shares, _each(companions, counts), strict=True):
            gradient: Any = kernel.symbolic_gradient(w, *own)
            _refuse_constant(gradient, "gradient")
            gradient = gradient * (upstream * factor)
            found = gradient if found is None else found + gradient
        return found

    def by_torch(sample: "Columns") -> None:
        number = scale.double() if isinstance(scale, torch.Tensor) else scale
        for out, w, *companions in zip(*sample, strict=True):
            wide = widened(w)
            parts = [
                kernel.gradient(wide, *own) * (number * factor)
                for (kernel, factor), own in zip(shares, _each(companions, counts), strict=True)
            ]
            out.copy_(sum(parts[1:], start=parts[0]))

    scalars = [[scale] * len(weights)] if isinstance(scale, torch.Tensor) else []
    left = choice.apply(added, [made, *columns], 0, by_torch, scalars, fresh=True)
    return [shards.like(g, w) for g, w in zip(made, weights, strict=True)], left


def _is_one_number(tensor: torch.Tensor) -> bool:
    return type(tensor) in PLAIN and tensor.numel() == 1


def _refuse_constant(found: Any, what: str) -> None:
    # Imported by who traces: a little model has no use for it.
    from regplug.kernels.symbols import Symbol, UntraceableError

    if type(found) is not Symbol:
        raise UntraceableError(f"its {what} does not depend on w")


def _columns(
    shares: Sequence[Share],
    of: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor] | None = None,
) -> tuple[list[Sequence[torch.Tensor]] | None, list[int]]:
    """Return local parts of weights and of all companions, and how many each penalty has.

    There are no columns where some weights have companions and others none.
    """
    columns: list[Sequence[torch.Tensor]] = [[shards.local(w) for w in weights or of]]
    counts = []
    for kernel, _ in shares:
        rows = [kernel.companions(w) for w in of] if kernel.has_companions else [()]
        if len(set(map(len, rows))) > 1:
            return None, []
        counts.append(len(rows[0]))
        columns += [[shards.local(c) for c in column] for column in zip(*rows, strict=True)]
    return columns, counts


def _each(companions: Sequence[Any], counts: Sequence[int]) -> list[Sequence[Any]]:
    """Return the companions of each penalty."""
    found, start = [], 0
    for count in counts:
        found.append(companions[start : start + count])
        start += count
    return found
