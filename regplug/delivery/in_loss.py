"""Penalties as a part of the objective: their value, and the term in the loss.

Small weights that are alike are worked on together, since a small tensor costs what the calls for
it cost; large ones in blocks, with no model-sized temporary.
"""

from collections.abc import Sequence
from typing import Any

import torch

from regplug.backend import shards
from regplug.backend.blocks import TINY, batches
from regplug.backend.precision import as_outside, widened
from regplug.delivery.at_step import add_gradients, whole_gradient
from regplug.delivery.nodes import Node, Term, nodes_of
from regplug.delivery.terms import total_of
from regplug.delivery.together import Share, made_gradients
from regplug.kernels.kernel import Kernel

__all__ = ["Objective"]


class Objective:
    """The penalties in the loss of one loop.

    What is worked on together is found out anew only when strengths, or the parameters, change.
    """

    def __init__(self) -> None:
        self._whole: list[Node] = []
        self._terms: list[Term] = []
        self._weights: list[torch.Tensor] = []
        self._kinds: list[Any] = []
        self._nodes: list[Node] = []

    def penalized(self, loss: torch.Tensor, terms: list[Term]) -> torch.Tensor:
        """Return ``loss`` with ``terms`` added, whose gradients are those that penalties state.

        A node of the graph saves no intermediate result, and keeps ``DTensor`` gradients as such,
        so that penalties of sharded weights may be added to a plain loss. Its gradients are made
        together, and have been accumulated before those of the next are made.
        """
        if terms != self._terms or _kinds(self._weights) != self._kinds:
            weights = (w for term in terms for ws in term.coverage.by_group.values() for w in ws)
            self._whole = nodes_of(terms)
            self._nodes = [piece for node in self._whole for piece in node.pieces()]
            self._terms, self._weights = terms, list(dict.fromkeys(weights))
            self._kinds = _kinds(self._weights)
        whole: list[Node] | None = self._whole
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
        node: Node,
        whole: Sequence[Node] | None,
        loss: torch.Tensor,
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        ctx.node = node
        ctx.save_for_backward(*weights)
        added = 0.0 if whole is None else total_of(whole)
        return loss + (added.to(loss) if isinstance(added, torch.Tensor) else added)

    @staticmethod
    @as_outside
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:
        (upstream,) = outputs
        node, weights = ctx.node, list(ctx.saved_tensors)
        loss_gradient, on_cpu = upstream, weights[0].is_cpu
        if not (on_cpu and upstream.is_cpu):  # the loss may be on another device than its weights
            upstream = upstream.to(weights[0].device)
        if torch.is_grad_enabled():  # create_graph: the gradient will be differentiated in turn
            gradients = [
                _differentiable(w, of, node, upstream)
                for w, of in zip(weights, node.weights, strict=True)
            ]
            return None, None, loss_gradient, *gradients
        # Elsewhere than on a CPU, reading a value waits for the device.
        scale = upstream.item() if on_cpu else upstream
        return None, None, loss_gradient, *_gradients(weights, node, scale)


def _gradients(
    weights: list[torch.Tensor], node: Node, scale: torch.Tensor | float
) -> list[torch.Tensor]:
    """Return scale·Σ factor·gradient(w) for each weight of a node, given as they were saved."""
    if node.choice is not None:
        found, left = made_gradients(node.choice, node.shares, weights, node.weights, scale)
        for part in node.apart(left) if left else ():
            own = _gradients([weights[row] for row in part.rows], part, scale)
            for row, gradient in zip(part.rows, own, strict=True):
                found[row] = gradient
        return found
    if not node.small:
        return [_gradient(weights[0], node, node.shares, scale)]
    if node.size < TINY * len(weights):
        return _small_gradients(weights, node.shares, scale)
    # One after another, while it is in the cache.
    return [g for w in weights for g in _small_gradients([w], node.shares, scale)]


def _differentiable(
    w: torch.Tensor, of: torch.Tensor, node: Node, scale: torch.Tensor
) -> torch.Tensor:
    gradients: list[torch.Tensor] = []
    for k, factor in node.shares:
        given = [k.arranged(t, node.layout) for t in (w, *k.companions(of))]
        found = k.restored(_blamed(k, k.gradient, *given), node.layout)
        gradients.append(found * (factor * scale))
    return sum(gradients[1:], start=gradients[0])


def _small_gradients(
    weights: list[torch.Tensor], shares: Sequence[Share], scale: torch.Tensor | float
) -> list[torch.Tensor]:
    """Return scale·Σ factor·gradient(w) for each weight, by few calls for all."""
    number, waits = (1.0, scale) if isinstance(scale, torch.Tensor) else (scale, None)
    (kernel, factor), *others = shares
    gradients = _blamed(kernel, kernel.gradients, weights, factor * number)
    for kernel, factor in others:
        _blamed(kernel, kernel.add_gradients, gradients, weights, factor * number)
    if waits is not None:
        torch._foreach_mul_(gradients, waits)
    return list(gradients)


def _gradient(
    w: torch.Tensor, node: Node, shares: Sequence[Share], scale: torch.Tensor | float
) -> torch.Tensor:
    """Return scale·Σ factor·gradient(w), written in place block by block where it can be.

    ``w`` is what was saved of the node's only parameter: a copy of it, if hooks are at work.
    """
    of = node.weights[0]
    (kernel, first_factor), *others = shares
    first: Any = first_factor * scale
    if kernel.separable:
        local = shards.local(w)
        part = torch.empty_like(local)
        for (out,), (piece,), *parts in batches([[part], [local], *kernel.companion_parts([of])]):
            companions = [companion for (companion,) in parts]
            _blamed(kernel, _scaled, kernel, piece, first, companions, out)
    else:
        whole = shards.full(w)
        companions = kernel.whole_companions(of)
        found = _blamed(kernel, whole_gradient, kernel, whole, companions, node.layout) * first
        part = shards.part(found, w).to(w.dtype)
    gradient = shards.like(part, w)
    for kernel, factor in others:
        if isinstance(scale, torch.Tensor) or kernel.has_companions:
            part.add_(shards.local(_gradient(w, node, [(kernel, factor)], scale)))
        else:
            layouts = {} if node.layout is None else {w: node.layout}
            _blamed(kernel, add_gradients, kernel, [gradient], [w], factor * scale, layouts)
    return gradient


def _scaled(
    kernel: Kernel,
    w: torch.Tensor,
    factor: Any,
    companions: Sequence[torch.Tensor],
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    gradient = kernel.gradient(widened(w.detach()), *companions)
    return torch.mul(gradient, factor, out=out)


def _blamed(kernel: Kernel, function: Any, *arguments: Any) -> Any:
    """Call a formula from inside a backward pass, where no session stands by to name the plugin."""
    try:
        return function(*arguments)
    except Exception as error:
        raise kernel.blame(error, "the backward pass of on_loss") from error
