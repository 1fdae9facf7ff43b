"""The terms of a loss, and weights that have the same ones, which are worked on together."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from regplug.backend.blocks import BLOCK
from regplug.backend.layouts import Layout
from regplug.backend.sums import shard_groups
from regplug.delivery.together import Share, choice_of
from regplug.kernels.choice import ALTOGETHER, Choice
from regplug.kernels.kernel import Kernel
from regplug.kernels.pieces import is_small
from regplug.selection.coverage import Coverage

__all__ = ["Node", "Term", "nodes_of"]

_BYTES = 64 << 20
"""What a node makes at once, elsewhere than on a CPU, where a block stays in the cache."""


class Term(NamedTuple):
    """What a penalty adds to a loss: Σ factor·value(w), a factor for each group of its coverage.

    Where strengths are by pattern, ``parts`` has the share of each weight, which the factor of its
    group multiplies; what is not in it has none.
    """

    kernel: Kernel
    coverage: Coverage
    factors: tuple[float, ...]
    parts: Mapping[torch.Tensor, Share] | None = None


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
    for kernel, coverage, factors, parts in terms:
        if kernel.orientation is not None:
            layouts.update(coverage.layouts)
        for factor, ws in zip(factors, coverage.by_group.values(), strict=True):
            share = ((kernel, factor),)
            for w in ws:
                if parts is not None:
                    if w not in parts:
                        continue
                    share = ((parts[w][0], parts[w][1] * factor),)
                if w.requires_grad:
                    shares[w] = shares[w] + share if w in shares else share
    nodes = list(_compiled_nodes(shares))
    done = {w for node in nodes for w in node.weights}
    return nodes + _plain_nodes(
        (w, own, layouts.get(w), 0) for w, own in shares.items() if w not in done
    )


def _compiled_nodes(shares: Mapping[torch.Tensor, tuple[Share, ...]]) -> Iterator[Node]:
    every, kinds = list(shares), set(shares.values())
    if not any(choice_of(own).pays(every, ALTOGETHER) for own in kinds):
        return  # a small net asks no more of each weight
    alike: dict[Any, list[torch.Tensor]] = {}
    for w, own in shares.items():
        if all(kernel.separable for kernel, _ in own):
            alike.setdefault((own, w.dtype, w.device, shard_groups(w)), []).append(w)
    for (own, *_), weights in alike.items():
        choice = choice_of(own)
        if choice.serves(weights):
            node = Node(own, False, choice=choice)
            for w in weights:
                node.add(w)
            yield node


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
