"""What penalties add up to: the terms of an objective, and their values."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from regplug.backend import shards
from regplug.backend.blocks import batches
from regplug.backend.precision import widened
from regplug.backend.private import flattened
from regplug.backend.sums import Sum, resolve, shard_groups
from regplug.delivery.nodes import Node, Term, nodes_of
from regplug.delivery.together import Share, summed
from regplug.kernels.choice import Choice
from regplug.kernels.kernel import Kernel
from regplug.kernels.pieces import FEW
from regplug.selection.coverage import Coverage

__all__ = ["Term", "total", "total_of", "value", "zeros"]


def _values(node: Node) -> list[tuple[Kernel, torch.Tensor | float]]:
    """Return what adds up, for each kernel, to Σ factor·value(w): over shards if separable."""
    first = node.weights[0]
    if node.choice is not None:
        compiled, left = summed(node.shares, node.weights)
        others = [term for part in node.apart(left) for term in _values(part)] if left else []
        return [(node.shares[0][0], compiled), *others]
    if node.small:
        pieces = node.weights
        if len(pieces) > FEW:
            pieces = [flattened(node.weights)]
        return [
            (kernel, _value(kernel, piece) * factor)
            for kernel, factor in node.shares
            for piece in pieces
        ]
    found: list[tuple[Kernel, torch.Tensor | float]] = []
    for kernel, factor in node.shares:
        if not kernel.separable:
            whole = (widened(shards.full(first).detach()), *kernel.whole_companions(first))
            given = [kernel.arranged(t, node.layout) for t in whole]
            found.append((kernel, _value(kernel, *given) * factor))
        elif (part := shards.local(first)).numel() == 0:
            found.append((kernel, 0.0))  # other ranks wait for its sum
        else:
            for (piece,), *parts in batches([[part], *kernel.companion_parts([first])]):
                companions = [companion for (companion,) in parts]
                term = _value(kernel, widened(piece.detach()), *companions)
                found.append((kernel, term * factor))
    return found


def _value(kernel: Kernel, *tensors: torch.Tensor) -> torch.Tensor | float:
    """Return value(w), as a number where it costs nothing to read one.

    Arithmetic on 0-d tensors is dear; and one that is kept may lie where glibc would else put the
    next large temporary, which then costs page faults.
    """
    value = kernel.value(*tensors)
    if not isinstance(value, torch.Tensor) or value.ndim != 0:
        kernel.refuse_value(value)
    return value.item() if value.is_cpu else value


def total_of(nodes: Iterable[Node]) -> torch.Tensor | float:
    """Return what the terms of ``nodes`` add up to; a collective if weights are sharded."""
    numbers: list[float] = []
    tensors: dict[torch.device, list[torch.Tensor]] = {}
    sharded: list[tuple[torch.Tensor, torch.Tensor | float]] = []
    for node in nodes:
        first = node.weights[0]
        of_shards = not node.small and shards.is_sharded(first)
        for kernel, term in _values(node):
            if of_shards and kernel.separable:
                sharded.append((first, term))
            elif isinstance(term, float):
                numbers.append(term)
            else:
                tensors.setdefault(term.device, []).append(term)
    result: torch.Tensor | float = math.fsum(numbers)
    for device, values in tensors.items():
        of_device = torch.stack(values).sum()
        # Sums of two accelerators don't add up by themselves.
        result = of_device + (result.to(device) if isinstance(result, torch.Tensor) else result)
    if sharded:
        result = result + resolve([Sum(sharded)])[0]
    return result


def total(term: Term) -> torch.Tensor | float:
    """Return Σ factor·value(w), a number or 0-d tensor; a collective if weights are sharded."""
    return total_of(nodes_of([term]))


def value(
    kernel: Kernel,
    coverage: Coverage,
    factor: float,
    parts: Mapping[torch.Tensor, Share] | None = None,
) -> Any:
    """Return what metrics show, factor·Σ: a sum over shards, or a number alike on all ranks."""
    nodes = nodes_of([Term(kernel, coverage, (1.0,) * len(coverage.by_group), parts)])
    if kernel.separable:
        terms = [(node.weights[0], term) for node in nodes for _, term in _values(node)]
        return Sum(terms, factor=factor)
    return total_of(nodes) * factor


def zeros(coverage: Coverage, kernels: str = "auto") -> Sum:
    """Return the share of the covered weights that are exactly 0, for ``on_metrics`` to return.

    Args:
        coverage: whose weights are counted, those of all ranks.
        kernels: which may count, ``session.kernels``.

    Returns:
        A sum that the session adds up over the ranks, within [0, 1].

    >>> import regplug
    >>> class Zeros(regplug.Selective):
    ...     "Changes nothing, and reports the share of zeros."
    ...     where = "weights"
    ...     @regplug.hookimpl
    ...     def on_metrics(self, session):
    ...         return {"zeros": zeros(session.coverage(self._selection))}
    >>> model = torch.nn.Linear(2, 2)
    >>> _ = torch.nn.init.eye_(model.weight)
    >>> regplug.attach(model, plugins=[Zeros()]).metrics()
    {'zeros/zeros': 0.5}
    """
    if (choice := _counting.get(coverage)) is None:
        choice = _counting[coverage] = Choice("zeros", kernels)
    alike: dict[Any, list[torch.Tensor]] = {}
    for entry in coverage.trainable:
        w = entry.parameter
        alike.setdefault((w.dtype, w.device, shard_groups(w)), []).append(w)
    terms: list[tuple[torch.Tensor, Any]] = []
    for ws in alike.values():
        parts = [shards.local(w).detach() for w in ws]
        left: Sequence[int] = range(len(ws))
        if choice.serves(ws):
            found, left = choice.total(_zeros, [parts], lambda columns: sum(map(_zeros, *columns)))
            terms.append((ws[0], found))
        terms += [(ws[row], parts[row].numel() - torch.count_nonzero(parts[row])) for row in left]
    return Sum(terms, factor=1 / max(coverage.weights, 1))


_counting: WeakKeyDictionary[Coverage, Choice] = WeakKeyDictionary()


def _zeros(w: torch.Tensor) -> torch.Tensor:
    return (w == 0).sum()
