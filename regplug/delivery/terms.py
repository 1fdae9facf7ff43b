"""What penalties add up to: the terms of an objective, and their values."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch

from regplug.backend import shards
from regplug.backend.blocks import BLOCK, batches
from regplug.backend.layouts import Layout
from regplug.backend.precision import widened
from regplug.backend.private import flattened
from regplug.backend.sums import Sum, resolve
from regplug.kernels.kernel import Kernel
from regplug.kernels.pieces import FEW, is_small
from regplug.selection.coverage import Coverage

__all__ = ["Share", "Term", "total", "value"]


# One penalty's part in a weight's gradient: its formula, and the factor before it.
Share: TypeAlias = tuple[Kernel, float]


class Term(NamedTuple):
    """What a penalty adds to a loss: Σ factor·value(w), a factor for each group of its coverage."""

    kernel: Kernel
    coverage: Coverage
    factors: tuple[float, ...]


@dataclass
class Node:
    """Weights that have the same shares: a single one, or small ones that make one flat tensor."""

    shares: Sequence[Share]
    small: bool
    weights: list[torch.Tensor] = field(default_factory=list)
    size: int = 0
    layout: Layout | None = None


def nodes_of(terms: Iterable[Term]) -> list[Node]:
    """Return each weight once, with all that the terms make of it.

    Weights go together, a block of them at most, if they are small and their penalties are
    separable and need to know nothing of a weight but its values.
    """
    shares: dict[torch.Tensor, tuple[Share, ...]] = {}
    layouts: dict[torch.Tensor, Layout] = {}
    w: torch.Tensor
    for kernel, coverage, factors in terms:
        if kernel.orientation is not None:
            layouts.update(coverage.layouts)
        for factor, ws in zip(factors, coverage.by_group.values(), strict=True):
            share = ((kernel, factor),)
            for w in ws:
                if w.requires_grad:
                    shares[w] = shares[w] + share if w in shares else share
    nodes: list[Node] = []
    open_: dict[Any, Node] = {}
    for w, of_w in shares.items():
        size, small = w.numel(), is_small([w]) and all(kernel.plain for kernel, _ in of_w)
        kind = (w.dtype, w.device, of_w) if small else w
        node = open_.get(kind)
        if node is None or node.size + size > BLOCK:
            node = open_[kind] = Node(of_w, small, layout=layouts.get(w))
            nodes.append(node)
        node.weights.append(w)
        node.size += size
    return nodes


def _values(node: Node) -> list[tuple[Kernel, torch.Tensor | float]]:
    """Return what adds up, for each kernel, to Σ factor·value(w): over shards if separable."""
    first = node.weights[0]
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


def value(kernel: Kernel, coverage: Coverage, factor: float) -> Any:
    """Return what metrics show, factor·Σ: a sum over shards, or a number alike on all ranks."""
    nodes = nodes_of([Term(kernel, coverage, (1.0,) * len(coverage.by_group))])
    if kernel.separable:
        terms = [(node.weights[0], term) for node in nodes for _, term in _values(node)]
        return Sum(terms, factor=factor)
    return total_of(nodes) * factor
