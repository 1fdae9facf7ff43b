"""Penalties as a part of the objective: their value, and the term in the loss.

Small weights that are alike are worked on together, since a small tensor costs what the calls for
it cost; large ones in blocks, with no model-sized temporary.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch

from regplug import distributed
from regplug.backend.private import flattened
from regplug.blocks import BLOCK, TINY, batches
from regplug.deliveries import (
    FEW,
    add_gradients,
    companions,
    is_small,
    whole_companions,
    whole_gradient,
    widened,
)
from regplug.layouts import Layout
from regplug.parameters import Coverage
from regplug.plugin import failure
from regplug.precision import as_outside

if TYPE_CHECKING:
    from regplug.penalty import Penalty

__all__ = ["Objective", "Term", "total", "value", "zeros"]

# One penalty's part in a weight's gradient: its formula, and the factor before it.
Share: TypeAlias = tuple["Penalty", float]


class Term(NamedTuple):
    """What a penalty adds to a loss: Σ factor·value(w), a factor for each group of its coverage."""

    penalty: "Penalty"
    coverage: Coverage
    factors: tuple[float, ...]


@dataclass
class _Node:
    """Weights that have the same shares: a single one, or small ones that make one flat tensor."""

    shares: Sequence[Share]
    small: bool
    weights: list[torch.Tensor] = field(default_factory=list)
    size: int = 0
    layout: Layout | None = None


def _nodes(terms: Iterable[Term]) -> list[_Node]:
    """Return each weight once, with all that the terms make of it.

    Weights go together, a block of them at most, if they are small and their penalties are
    separable and need to know nothing of a weight but its values.
    """
    shares: dict[torch.Tensor, tuple[Share, ...]] = {}
    layouts: dict[torch.Tensor, Layout] = {}
    w: torch.Tensor
    for penalty, coverage, factors in terms:
        if penalty.orientation is not None:
            layouts.update(coverage.layouts)
        for factor, ws in zip(factors, coverage.by_group.values(), strict=True):
            share = ((penalty, factor),)
            for w in ws:
                if w.requires_grad:
                    shares[w] = shares[w] + share if w in shares else share
    nodes: list[_Node] = []
    open_: dict[Any, _Node] = {}
    for w, own in shares.items():
        size, small = w.numel(), is_small([w]) and all(penalty._plain for penalty, _ in own)
        kind = (w.dtype, w.device, own) if small else w
        node = open_.get(kind)
        if node is None or node.size + size > BLOCK:
            node = open_[kind] = _Node(own, small, layout=layouts.get(w))
            nodes.append(node)
        node.weights.append(w)
        node.size += size
    return nodes


# --- values ------------------------------------------------------------------------------------


def _values(node: _Node) -> list[tuple["Penalty", torch.Tensor | float]]:
    """Return what adds up, for each penalty, to Σ factor·value(w): over shards if separable."""
    first = node.weights[0]
    if node.small:
        pieces = node.weights
        if len(pieces) > FEW:
            pieces = [flattened(node.weights)]
        return [
            (penalty, _value(penalty, piece) * factor)
            for penalty, factor in node.shares
            for piece in pieces
        ]
    found: list[tuple[Penalty, torch.Tensor | float]] = []
    for penalty, factor in node.shares:
        if not penalty.separable:
            whole = (widened(distributed.full(first)), *whole_companions(penalty, first))
            own = _value(penalty, *(penalty._arranged(t, node.layout) for t in whole))
            found.append((penalty, own * factor))
        elif (part := distributed.local(first)).numel() == 0:
            found.append((penalty, 0.0))  # other ranks wait for its sum
        else:
            for (piece,), *cs in batches([[part], *companions(penalty, [first])]):
                own = _value(penalty, widened(piece), *(column[0] for column in cs))
                found.append((penalty, own * factor))
    return found


def _value(penalty: "Penalty", *tensors: torch.Tensor) -> torch.Tensor | float:
    """Return value(w), as a number where it costs nothing to read one.

    Arithmetic on 0-d tensors is dear; and one that is kept may lie where glibc would else put the
    next large temporary, which then costs page faults.
    """
    value = penalty.value(*tensors)
    if not isinstance(value, torch.Tensor) or value.ndim != 0:
        penalty._refuse_value(value)
    return value.item() if value.is_cpu else value


def _total(nodes: Iterable[_Node]) -> torch.Tensor | float:
    numbers: list[float] = []
    tensors: dict[torch.device, list[torch.Tensor]] = {}
    sharded: list[tuple[torch.Tensor, torch.Tensor | float]] = []
    for node in nodes:
        first = node.weights[0]
        of_shards = not node.small and distributed.is_sharded(first)
        for penalty, own in _values(node):
            if of_shards and penalty.separable:
                sharded.append((first, own))
            elif isinstance(own, float):
                numbers.append(own)
            else:
                tensors.setdefault(own.device, []).append(own)
    result: torch.Tensor | float = math.fsum(numbers)
    for device, values in tensors.items():
        own = torch.stack(values).sum()
        # Sums of two accelerators don't add up by themselves.
        result = own + (result.to(device) if isinstance(result, torch.Tensor) else result)
    if sharded:
        result = result + distributed.resolve([distributed.Sum(sharded)])[0]
    return result


def total(term: Term) -> torch.Tensor | float:
    """Return Σ factor·value(w), a number or 0-d tensor; a collective if weights are sharded."""
    return _total(_nodes([term]))


def value(penalty: "Penalty", coverage: Coverage, factor: float) -> Any:
    """Return what metrics show, factor·Σ: a sum over shards, or a number alike on all ranks."""
    nodes = _nodes([Term(penalty, coverage, (1.0,) * len(coverage.by_group))])
    if penalty.separable:
        terms = [(node.weights[0], own) for node in nodes for _, own in _values(node)]
        return distributed.Sum(terms, factor=factor)
    return _total(nodes) * factor


def zeros(coverage: Coverage) -> distributed.Sum:
    """Return the share of the covered weights that are exactly 0."""
    terms = []
    for entry in coverage.trainable:
        w = distributed.local(entry.parameter).detach()
        terms.append((entry.parameter, w.numel() - torch.count_nonzero(w)))
    return distributed.Sum(terms, factor=1 / max(coverage.weights, 1))


# --- in the loss -------------------------------------------------------------------------------


class Objective:
    """The penalties in the loss of one loop.

    What is worked on together is found out anew only when strengths, or the parameters, change.
    """

    def __init__(self) -> None:
        self._terms: list[Term] = []
        self._weights: list[torch.Tensor] = []
        self._kinds: list[Any] = []
        self._nodes: list[_Node] = []

    def penalized(self, loss: torch.Tensor, terms: list[Term]) -> torch.Tensor:
        """Return ``loss`` with ``terms`` added, whose gradients are those that penalties state.

        A node of the graph saves no intermediate result, and keeps ``DTensor`` gradients as such,
        so that penalties of sharded weights may be added to a plain loss. Its gradients are made
        together, and have been accumulated before those of the next are made.
        """
        if terms != self._terms or _kinds(self._weights) != self._kinds:
            weights = (w for term in terms for ws in term.coverage.by_group.values() for w in ws)
            self._nodes = _nodes(terms)
            self._terms, self._weights = terms, list(dict.fromkeys(weights))
            self._kinds = _kinds(self._weights)
        whole: list[_Node] | None = self._nodes
        for node in self._nodes:
            loss = _Penalized.apply(node, whole, loss, *node.weights)  # type: ignore[no-untyped-call]
            whole = None
        return loss


def _kinds(weights: Sequence[torch.Tensor]) -> list[Any]:
    """Return what may change about parameters that stay the same objects."""
    return [(w.requires_grad, w.dtype, w.device, w.numel()) for w in weights]


class _Penalized(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        node: _Node,
        whole: Sequence[_Node] | None,
        loss: torch.Tensor,
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        ctx.node = node
        ctx.save_for_backward(*weights)
        added = 0.0 if whole is None else _total(whole)
        return loss + (added.to(loss) if isinstance(added, torch.Tensor) else added)

    @staticmethod
    @as_outside
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:
        (upstream,) = outputs
        node, weights = ctx.node, list(ctx.saved_tensors)
        loss_gradient, device = upstream, weights[0].device
        if upstream.device != device:  # the loss may be on another than its weights
            upstream = upstream.to(device)
        if torch.is_grad_enabled():  # create_graph: the gradient will be differentiated in turn
            own = [
                _differentiable(w, of, node, upstream)
                for w, of in zip(weights, node.weights, strict=True)
            ]
            return None, None, loss_gradient, *own
        # Elsewhere than on a CPU, reading a value waits for the device.
        scale = upstream.item() if device.type == "cpu" else upstream
        if not node.small:
            own = [_gradient(weights[0], node, node.shares, scale)]
        elif node.size < TINY * len(weights):
            own = _small_gradients(weights, node.shares, scale)
        else:  # one after another, while it is in the cache
            own = [g for w in weights for g in _small_gradients([w], node.shares, scale)]
        return None, None, loss_gradient, *own


def _differentiable(
    w: torch.Tensor, of: torch.Tensor, node: _Node, scale: torch.Tensor
) -> torch.Tensor:
    gradients: list[torch.Tensor] = []
    for p, factor in node.shares:
        given = [p._arranged(t, node.layout) for t in (w, *p.companions(of))]
        found = p._restored(_blamed(p, p._shaped_gradient, *given), node.layout)
        gradients.append(found * (factor * scale))
    return sum(gradients[1:], start=gradients[0])


def _small_gradients(
    weights: list[torch.Tensor], shares: Sequence[Share], scale: torch.Tensor | float
) -> list[torch.Tensor]:
    """Return scale·Σ factor·gradient(w) for each weight, by few calls for all."""
    number, waits = (1.0, scale) if isinstance(scale, torch.Tensor) else (scale, None)
    (penalty, factor), *others = shares
    gradients = _blamed(penalty, penalty.gradients, weights, factor * number)
    for penalty, factor in others:
        _blamed(penalty, penalty.add_gradients, gradients, weights, factor * number)
    if waits is not None:
        torch._foreach_mul_(gradients, waits)
    return list(gradients)


def _gradient(
    w: torch.Tensor, node: _Node, shares: Sequence[Share], scale: torch.Tensor | float
) -> torch.Tensor:
    """Return scale·Σ factor·gradient(w), written in place block by block where it can be.

    ``w`` is what was saved of the node's only parameter: a copy of it, if hooks are at work.
    """
    of = node.weights[0]
    (penalty, own_factor), *others = shares
    first: Any = own_factor * scale
    if penalty.separable:
        own = distributed.local(w)
        part = torch.empty_like(own)
        for (out,), (piece,), *cs in batches([[part], [own], *companions(penalty, [of])]):
            beside = [column[0] for column in cs]
            _blamed(penalty, _scaled, penalty, piece, first, beside, out)
    else:
        whole = distributed.full(w)
        beside = whole_companions(penalty, of)
        found = _blamed(penalty, whole_gradient, penalty, whole, beside, node.layout) * first
        part = distributed.part(found, w).to(w.dtype)
    gradient = distributed.like(part, w)
    for penalty, factor in others:
        if isinstance(scale, torch.Tensor) or penalty._has_companions:
            part.add_(distributed.local(_gradient(w, node, [(penalty, factor)], scale)))
        else:
            layouts = {} if node.layout is None else {w: node.layout}
            _blamed(penalty, add_gradients, penalty, [gradient], [w], factor * scale, layouts)
    return gradient


def _scaled(
    penalty: "Penalty",
    w: torch.Tensor,
    factor: Any,
    beside: Sequence[torch.Tensor],
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    gradient = penalty._shaped_gradient(widened(w), *beside)
    return torch.mul(gradient, factor, out=out)


def _blamed(plugin: "Penalty", function: Any, *arguments: Any) -> Any:
    """Call a formula from inside a backward pass, where no session stands by to name the plugin."""
    try:
        return function(*arguments)
    except Exception as error:
        raise failure(error, plugin, "the backward pass of on_loss", plugin._step) from error
