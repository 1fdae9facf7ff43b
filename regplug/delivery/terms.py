"""What penalties add up to: the terms of an objective, and their values."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from regplug.backend import shards
from regplug.backend.blocks import BLOCK, batches
from regplug.backend.layouts import Layout
from regplug.backend.private import flattened
from regplug.backend.sums import Sum, added_up, resolve, shard_groups
from regplug.delivery.together import Share, choice_of, summed
from regplug.kernels.choice import Choice
from regplug.kernels.kernel import Kernel
from regplug.kernels.pieces import FEW, is_small, widened
from regplug.selection.coverage import Coverage

__all__ = ["Node", "Share", "Term", "nodes_of", "total", "total_of", "value", "zeros"]

_BYTES = 64 << 20
"""What a node makes at once, elsewhere than on a CPU, where a block stays in the cache."""


class Term(NamedTuple):
    """What a penalty adds to a loss: Σ factor·value(w), a factor for each group of its coverage."""

    kernel: Kernel
    coverage: Coverage
    factors: tuple[float, ...]


@dataclass
class Node:
    """Weights that have the same shares: a single one, or several that are worked on together.

    Attributes:
        shares: the penalties.
        small: whether these are small ones that make one flat tensor.
        weights: the parameters.
        rows: their places in the node that this one is a part of.
        size: their elements.
        layout: of a single one that penalties want in another.
        choice: of the kernels of all that is compiled, large or small; None if nothing is.
    """

    shares: Sequence[Share]
    small: bool
    weights: list[torch.Tensor] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    size: int = 0
    layout: Layout | None = None
    choice: Choice | None = None
    _apart: list["Node"] = field(default_factory=list)

    def add(self, w: torch.Tensor, row: int = 0) -> None:
        """Take a weight in."""
        self.weights.append(w)
        self.rows.append(row)
        self.size += w.numel()

    def pieces(self) -> Iterator["Node"]:
        """Yield what is made at once of it: all, unless it is compiled and large."""
        if self.choice is None:
            yield self
            return
        first = self.weights[0]
        most = BLOCK if first.device.type == "cpu" else _BYTES // first.dtype.itemsize
        piece = Node(self.shares, False, choice=self.choice)
        for w in self.weights:
            if piece.weights and piece.size + w.numel() > most:
                yield piece
                piece = Node(self.shares, False, choice=self.choice)
            piece.add(w)
        yield piece

    def apart(self, rows: Iterable[int]) -> list["Node"]:
        """Return nodes without kernels for those of its weights that these can't do."""
        rows = list(rows)
        if len(rows) < len(self.weights):
            return _plain_nodes((self.weights[row], self.shares, None, row) for row in rows)
        if not self._apart:
            every = enumerate(self.weights)
            self._apart += _plain_nodes((w, self.shares, None, row) for row, w in every)
        return self._apart


def nodes_of(terms: Iterable[Term]) -> list[Node]:
    """Return each weight once, with all that the terms make of it.

    Weights of the same shares go together where a compiled kernel serves them. Elsewhere they do,
    a block of them at most, if they are small and their penalties are separable and need to know
    nothing of a weight but its values.
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
    alike: dict[Any, list[torch.Tensor]] = {}
    for w, own in shares.items():
        if all(kernel.separable for kernel, _ in own):
            alike.setdefault((own, w.dtype, w.device, shard_groups(w)), []).append(w)
    nodes: list[Node] = []
    for (own, *_), together in alike.items():
        choice = choice_of(own)
        if choice.serves(together):
            nodes.append(Node(own, False, choice=choice))
            for w in together:
                nodes[-1].add(w)
                del shares[w]
    return nodes + _plain_nodes((w, own, layouts.get(w), 0) for w, own in shares.items())


def _plain_nodes(
    weights: Iterable[tuple[torch.Tensor, Sequence[Share], Layout | None, int]],
) -> list[Node]:
    nodes: list[Node] = []
    open_: dict[Any, Node] = {}
    for w, own, layout, row in weights:
        size, small = w.numel(), is_small([w]) and all(kernel.plain for kernel, _ in own)
        kind = (w.dtype, w.device, own) if small else w
        node = open_.get(kind)
        if node is None or node.size + size > BLOCK:
            node = open_[kind] = Node(own, small, layout=layout)
            nodes.append(node)
        node.add(w, row)
    return nodes


def _values(node: Node) -> list[tuple[Kernel, torch.Tensor | float]]:
    """Return what adds up, for each kernel, to Σ factor·value(w): over shards if separable."""
    first = node.weights[0]
    if node.choice is not None:
        sum_, left = summed(node.shares, node.weights)
        parts = [own for part in node.apart(left) for own in _values(part)] if left else []
        return [(node.shares[0][0], sum_), *parts]
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
            whole = (widened(shards.full(first)), *kernel.whole_companions(first))
            own = _value(kernel, *(kernel.arranged(t, node.layout) for t in whole))
            found.append((kernel, own * factor))
        elif (part := shards.local(first)).numel() == 0:
            found.append((kernel, 0.0))  # other ranks wait for its sum
        else:
            for (piece,), *cs in batches([[part], *kernel.columns([first])]):
                own = _value(kernel, widened(piece), *(column[0] for column in cs))
                found.append((kernel, own * factor))
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
        for kernel, own in _values(node):
            if of_shards and kernel.separable:
                sharded.append((first, own))
            elif isinstance(own, float):
                numbers.append(own)
            else:
                tensors.setdefault(own.device, []).append(own)
    result: torch.Tensor | float = added_up(numbers)
    for device, values in tensors.items():
        own = torch.stack(values).sum()
        # Sums of two accelerators don't add up by themselves.
        result = own + (result.to(device) if isinstance(result, torch.Tensor) else result)
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
        terms = [(node.weights[0], own) for node in nodes for _, own in _values(node)]
        return Sum(terms, factor=factor)
    return total_of(nodes) * factor


def zeros(coverage: Coverage, kernels: str = "auto") -> Sum:
    """Return the share of the covered weights that are exactly 0.

    Args:
        coverage: whose weights are counted.
        kernels: which may count, ``session.kernels``.
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
