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
from regplug.blocks import BLOCK, batches
from regplug.deliveries import (
    FEW,
    TINY,
    add_gradients,
    companions,
    is_small,
    whole_companions,
    widened,
)
from regplug.errors import PluginError, RegplugError
from regplug.parameters import Coverage

if TYPE_CHECKING:
    from regplug.penalty import Penalty

__all__ = ["Term", "penalized", "total", "value", "zeros"]

# One penalty's part in a weight's gradient: its formula, and the factor before it.
Share: TypeAlias = tuple["Penalty", float]


class Term(NamedTuple):
    """What a penalty adds to a loss: Σ factor·value(w), for each factor over its own weights."""

    penalty: "Penalty"
    by_factor: Sequence[tuple[float, Sequence[torch.Tensor]]]


@dataclass
class _Node:
    """Weights that have the same shares: a single one, or small ones that make one flat tensor."""

    shares: Sequence[Share]
    small: bool
    weights: list[torch.Tensor] = field(default_factory=list)
    size: int = 0


def _nodes(terms: Iterable[Term]) -> list[_Node]:
    """Return each weight once, with all that the terms make of it.

    Weights go together, a block of them at most, if they are small and their penalties are
    separable and need to know nothing of a weight but its values.
    """
    shares: dict[torch.Tensor, tuple[Share, ...]] = {}
    for term in terms:
        for factor, ws in term.by_factor:
            share = ((term.penalty, factor),)
            for w in ws:
                shares[w] = shares[w] + share if w in shares else share
    nodes: list[_Node] = []
    open_: dict[Any, _Node] = {}
    for w, own in shares.items():
        size, small = w.numel(), is_small([w])
        if small:
            for penalty, _ in own:
                small = small and penalty.separable and not penalty.companions(w)
        kind = (w.dtype, w.device, own) if small else w
        node = open_.get(kind)
        if node is None or node.size + size > BLOCK:
            node = open_[kind] = _Node(own, small)
            nodes.append(node)
        node.weights.append(w)
        node.size += size
    return nodes


# --- values ------------------------------------------------------------------------------------


def _values(node: _Node) -> list[tuple["Penalty", torch.Tensor | float]]:
    """Return what adds up, for each penalty, to Σ factor·value(w): over shards if separable."""
    first = node.weights[0]
    if node.small:
        pieces = [w.detach() for w in node.weights]
        if len(pieces) > FEW:
            pieces = [torch.cat([piece.reshape(-1) for piece in pieces])]
        return [
            (penalty, _read(penalty.scalar_value(piece)) * factor)
            for penalty, factor in node.shares
            for piece in pieces
        ]
    found: list[tuple[Penalty, torch.Tensor | float]] = []
    for penalty, factor in node.shares:
        if not penalty.separable:
            whole = widened(distributed.full(first))
            own = penalty.scalar_value(whole, *whole_companions(penalty, first))
            found.append((penalty, _read(own) * factor))
        elif (part := distributed.local(first)).numel() == 0:
            found.append((penalty, 0.0))  # other ranks wait for its sum
        else:
            for (piece,), *cs in batches([[part], *companions(penalty, [first])]):
                own = penalty.scalar_value(widened(piece), *(column[0] for column in cs))
                found.append((penalty, _read(own) * factor))
    return found


def _read(value: torch.Tensor) -> torch.Tensor | float:
    """Return a number where it costs nothing to read one.

    Arithmetic on 0-d tensors is dear; and one that is kept may lie where glibc would else put the
    next large temporary, which then costs page faults.
    """
    return value.item() if value.device.type == "cpu" else value


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
    for values in tensors.values():
        result = result + torch.stack(values).sum()
    if sharded:
        result = result + distributed.resolve([distributed.Sum(sharded)])[0]
    return result


def total(term: Term) -> torch.Tensor | float:
    """Return Σ factor·value(w), a number or 0-d tensor; a collective if weights are sharded."""
    return _total(_nodes([term]))


def value(penalty: "Penalty", weights: Sequence[torch.Tensor], factor: float) -> Any:
    """Return what metrics show, factor·Σ: a sum over shards, or a number alike on all ranks."""
    nodes = _nodes([Term(penalty, [(1.0, weights)])])
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


def penalized(loss: torch.Tensor, terms: Sequence[Term]) -> torch.Tensor:
    """Return ``loss`` with ``terms`` added, whose gradients are those that the penalties state.

    A node of the graph saves no intermediate result, and keeps ``DTensor`` gradients as such, so
    that penalties of sharded weights may be added to a plain loss. Its gradients are made together,
    and have been accumulated before those of the next are made.
    """
    nodes = _nodes(terms)
    with torch.no_grad():
        added = _total(nodes)
    for node in nodes:
        loss = _Penalized.apply(node, added, loss, *node.weights)  # type: ignore[no-untyped-call]
        added = 0.0
    return loss


class _Penalized(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        node: _Node,
        added: torch.Tensor | float,
        loss: torch.Tensor,
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        ctx.shares, ctx.tiny = node.shares, node.small and node.size < TINY * len(weights)
        ctx.save_for_backward(*weights)
        return loss + (added.to(loss) if isinstance(added, torch.Tensor) else added)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:
        (upstream,) = outputs
        weights, shares = ctx.saved_tensors, ctx.shares
        if torch.is_grad_enabled():  # create_graph: the gradient will be differentiated in turn
            return None, None, upstream, *(_differentiable(w, shares, upstream) for w in weights)
        # Elsewhere than on a CPU, reading a value waits for the device.
        scale = upstream.item() if upstream.device.type == "cpu" else upstream
        if ctx.tiny:
            return None, None, upstream, *_tiny_gradients(weights, shares, scale)
        return None, None, upstream, *(_gradient(w, shares, scale) for w in weights)


def _differentiable(w: torch.Tensor, shares: Sequence[Share], scale: torch.Tensor) -> torch.Tensor:
    gradients: list[torch.Tensor] = [
        _blamed(p, p.gradient, w, *p.companions(w)) * (factor * scale) for p, factor in shares
    ]
    return sum(gradients[1:], start=gradients[0])


def _tiny_gradients(
    weights: Sequence[torch.Tensor], shares: Sequence[Share], scale: torch.Tensor | float
) -> list[torch.Tensor]:
    """Return scale·Σ factor·gradient(w) for each weight, a few calls for all."""
    weights, gradients = list(weights), [torch.zeros_like(w) for w in weights]
    number, waits = (1.0, scale) if isinstance(scale, torch.Tensor) else (scale, None)
    for penalty, factor in shares:
        _blamed(penalty, penalty.add_gradients, gradients, weights, factor * number)
    if waits is not None:
        torch._foreach_mul_(gradients, waits)
    return gradients


def _gradient(
    w: torch.Tensor, shares: Sequence[Share], scale: torch.Tensor | float
) -> torch.Tensor:
    """Return scale·Σ factor·gradient(w), written in place block by block where it can be."""
    (penalty, own_factor), *others = shares
    first: Any = own_factor * scale
    if penalty.separable:
        own = distributed.local(w)
        part = torch.empty_like(own)
        for (out,), (piece,), *cs in batches([[part], [own], *companions(penalty, [w])]):
            beside = [column[0] for column in cs]
            _blamed(penalty, _scaled, penalty, piece, first, beside, out)
    else:
        whole = distributed.full(w)
        part = _blamed(penalty, _scaled, penalty, whole, first, whole_companions(penalty, w))
        part = distributed.part(part, w).to(w.dtype)
    gradient = distributed.like(part, w)
    for penalty, factor in others:
        if isinstance(scale, torch.Tensor):
            part.add_(distributed.local(_gradient(w, [(penalty, factor)], scale)))
        else:
            _blamed(penalty, add_gradients, penalty, [gradient], [w], factor * scale)
    return gradient


def _scaled(
    penalty: "Penalty",
    w: torch.Tensor,
    factor: Any,
    beside: Sequence[torch.Tensor],
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    gradient = penalty.gradient(widened(w), *beside)
    if gradient.shape != w.shape:
        raise ValueError(
            f"gradient(w) must be shaped like w, {tuple(w.shape)}, got {tuple(gradient.shape)}"
        )
    return torch.mul(gradient, factor, out=out)


def _blamed(plugin: "Penalty", function: Any, *arguments: Any) -> Any:
    """Call a formula from inside a backward pass, where no session stands by to name the plugin."""
    try:
        return function(*arguments)
    except RegplugError:
        raise
    except Exception as error:
        raise PluginError(
            f"{plugin.name} ({plugin.source}) failed in the backward pass of on_loss at step "
            f"{plugin._step}: {type(error).__name__}: {error}"
        ) from error
