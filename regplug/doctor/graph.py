"""The penalties in the graph behind a loss, from the weights up to what is differentiated."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from regplug.backend.private import leaf_of
from regplug.doctor.forms import SUMS, Form, Value
from regplug.doctor.nodes import value_of

__all__ = ["Terms", "terms_of"]


class Terms:
    """What was found behind a loss.

    Attributes:
        forms: the penalties, each with where its strength is read.
        leaves: all leaves that gradients will reach.
        hidden: names of nodes in which penalties of weights could be without being seen.
        data: whether anything but penalties is in the loss.
        nodes: all nodes behind the loss.
    """

    def __init__(self) -> None:
        self.forms: list[Form] = []
        self.leaves: dict[int, torch.Tensor] = {}
        self.hidden: set[str] = set()
        self.data = False
        self.nodes: set[Any] = set()


def terms_of(roots: Sequence[torch.Tensor], is_weight: Callable[[torch.Tensor], bool]) -> Terms:
    """Return the penalties in the graph behind ``roots``.

    Args:
        roots: the tensors that are differentiated.
        is_weight: whether a leaf is a weight that somebody trains.
    """
    terms = Terms()
    values: dict[tuple[Any, int], Value] = {}
    for root in roots:
        if root.grad_fn is None:
            continue
        value = _evaluate(root.grad_fn, root.output_nr, values, terms, is_weight)
        terms.data = terms.data or value.data
        single = {"abs": "abs_sum", "square": "square_sum"} if root.numel() == 1 else {}
        for form in value.forms:
            term = form.as_(single.get(form.kind, form.kind))
            if term.kind in SUMS and term not in terms.forms:
                terms.forms.append(term)
    terms.nodes = {node for node, _ in values}
    return terms


def _evaluate(
    top: Any,
    output: int,
    values: dict[tuple[Any, int], Value],
    terms: Terms,
    is_weight: Callable[[torch.Tensor], bool],
) -> Value:
    """Return what an output of ``top`` is made of; by a stack, as graphs are deep."""
    stack: list[tuple[Any, int]] = [(top, output)]
    while stack:
        key = stack[-1]
        if key in values:
            stack.pop()
            continue
        node = key[0]
        edges = node.next_functions
        waiting = [edge for edge in edges if edge[0] is not None and edge not in values]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        if not edges and (leaf := leaf_of(node)) is not None:
            terms.leaves[id(leaf)] = leaf
            values[key] = Value((Form("w", (node,)),)) if is_weight(leaf) else Value(data=True)
            continue
        if "Compiled" in node.name():
            terms.hidden.add(node.name())
        inputs = [None if n is None else values[(n, i)] for n, i in edges]
        values[key] = value_of(node, key[1], inputs)
    return values[(top, output)]
