"""How a penalty's formula reaches gradients, weights and the loss, whatever their layout.

A separable penalty is worked on in batches of flat pieces, shard by shard; any other on whole
tensors, which sharded parameters are gathered for. Halves are computed with in float32.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from regplug import distributed
from regplug.blocks import batches
from regplug.optimizers import Group, UpdateRule
from regplug.parameters import Coverage

if TYPE_CHECKING:
    from regplug.penalty import Penalty

__all__ = [
    "LossTerm",
    "add_gradients",
    "elementwise_proximal",
    "proximal",
    "tell_rounding",
    "total",
    "value",
    "widened",
    "zeros",
]

_HALVES = (torch.float16, torch.bfloat16)


def widened(w: torch.Tensor) -> torch.Tensor:
    """Return halves in float32, in which sums and small strengths survive; others as they are."""
    w = w.detach()
    return w.float() if w.dtype in _HALVES else w


# --- gradients ---------------------------------------------------------------------------------


def add_gradients(
    penalty: "Penalty",
    gradients: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    factor: float,
) -> None:
    """Add ``factor · gradient(w)`` to each of ``gradients``, in place."""
    if penalty.separable:
        parts = [distributed.local(g) for g in gradients], [distributed.local(w) for w in weights]
        for gs, ws in batches(parts):
            penalty.add_gradients(gs, [widened(w) for w in ws], factor)
        return
    for g, w in zip(gradients, weights, strict=True):
        whole = penalty.gradient(widened(distributed.full(w)))
        distributed.local(g).add_(distributed.part(whole, w), alpha=factor)


def tell_rounding(
    penalty: "Penalty",
    gradients: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    factor: float,
) -> None:
    """Warn if half-precision gradients are too coarse for most of what is about to be added."""
    for pair in zip(gradients, weights, strict=True):
        g, w = map(distributed.local, pair)
        if g.dtype not in _HALVES or not penalty.separable or g.layout != torch.strided:
            continue
        if w.numel() == 0:
            continue
        added = penalty.gradient(widened(w)) * factor
        lost = ((g + added).to(g.dtype) == g) & (added != 0)
        if lost.sum() * 2 > (added != 0).sum():
            warnings.warn(
                f"{penalty.name}: most of what it adds rounds away in {g.dtype} gradients; keep "
                "the weights in float32 (autocast does), or use a larger strength",
                stacklevel=2,
            )
            return


# --- proximal operators ------------------------------------------------------------------------


def proximal(penalty: "Penalty", weights: Sequence[torch.Tensor], step: Any) -> None:
    """Replace ``weights`` by their proximal points for one step that they all have."""
    if penalty.separable:
        for (pieces,) in batches([[distributed.local(w) for w in weights]]):
            penalty.proximal_(pieces, step)
        return
    for w in weights:
        _whole_proximal(penalty, w, step)


def elementwise_proximal(
    penalty: "Penalty",
    rule: UpdateRule,
    group: Group,
    state: Mapping[str, Any],
    w: torch.Tensor,
    g: torch.Tensor,
) -> None:
    """Replace ``w`` by its proximal point for the step that each of its elements has."""
    names = rule.tensors(group)
    columns = [distributed.local(t) for t in (w, g, *(state[name] for name in names))]
    if not penalty.separable:
        moments = dict(zip(names, columns[2:], strict=True))
        step = rule.step(group, {**state, **moments}, columns[1])
        _whole_proximal(penalty, w, distributed.full(distributed.like(step, w)))
        return
    for batch in batches([[column] for column in columns]):
        (weight,), (gradient,), *pieces = batch
        moments = {name: widened(piece) for name, (piece,) in zip(names, pieces, strict=True)}
        penalty.proximal_([weight], rule.step(group, {**state, **moments}, gradient))


def _whole_proximal(penalty: "Penalty", w: torch.Tensor, step: Any) -> None:
    whole = penalty.proximal(widened(distributed.full(w)), step)
    distributed.local(w).copy_(distributed.part(whole, w))


# --- values ------------------------------------------------------------------------------------


def _own_value(penalty: "Penalty", weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return Σ value(w); of a separable penalty and sharded weights, of this rank's parts."""
    if penalty.separable:
        parts = [distributed.local(w).detach() for w in weights]
        sums = [penalty.values([widened(w) for w in ws]) for (ws,) in batches([parts])]
    else:
        sums = [penalty.values([widened(distributed.full(w))]) for w in weights]
    if not sums:
        return torch.zeros((), device=weights[0].device)
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum()


def total(
    penalty: "Penalty", weights: Sequence[torch.Tensor], factors: Sequence[float]
) -> torch.Tensor:
    """Return Σ factor·value(w), a 0-d tensor: one collective, and only if weights are sharded."""
    kinds = {(factor, w.device, w.dtype) for w, factor in zip(weights, factors, strict=True)}
    sharded = penalty.separable and any(distributed.is_sharded(w) for w in weights)
    if len(kinds) == 1 and not sharded:
        return _own_value(penalty, weights) * factors[0]
    terms = [_own_value(penalty, [w]) * f for w, f in zip(weights, factors, strict=True)]
    if sharded:
        (summed,) = distributed.resolve([distributed.Sum(zip(weights, terms, strict=True))])
        return terms[0].new_tensor(summed)
    return torch.stack([term.to(terms[0].device) for term in terms]).sum()


def value(penalty: "Penalty", weights: Sequence[torch.Tensor], factor: float) -> Any:
    """Return what metrics show, factor·Σ: a sum over shards, or a tensor alike on all ranks."""
    terms = [_own_value(penalty, [w]).double() for w in weights]
    if penalty.separable:
        return distributed.Sum(zip(weights, terms, strict=True), factor=factor)
    return torch.stack([term.to(terms[0].device) for term in terms]).sum() * factor


def zeros(coverage: Coverage) -> distributed.Sum:
    """Return the share of the covered weights that are exactly 0."""
    terms = []
    for entry in coverage.trainable:
        w = distributed.local(entry.parameter).detach()
        terms.append((entry.parameter, w.numel() - torch.count_nonzero(w)))
    return distributed.Sum(terms, factor=1 / max(coverage.weights, 1))


class LossTerm(torch.autograd.Function):
    """Σ factor·value(w) with the gradient that the penalty states, right under create_graph.

    As one node of the graph it saves no intermediate results, and keeps ``DTensor`` gradients as
    such, so that it may be added to a plain loss.
    """

    @classmethod
    def of(
        cls, penalty: "Penalty", factors: Sequence[float], weights: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Return the term, a 0-d tensor."""
        return cls.apply(penalty, factors, *weights)  # type: ignore[no-any-return,no-untyped-call]

    @staticmethod
    def forward(
        ctx: Any, penalty: "Penalty", factors: Sequence[float], *weights: torch.Tensor
    ) -> torch.Tensor:
        ctx.penalty, ctx.factors = penalty, factors
        ctx.save_for_backward(*weights)
        return total(penalty, weights, factors)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:
        (upstream,), penalty = outputs, ctx.penalty
        weights: tuple[torch.Tensor, ...] = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: this gradient is differentiated in turn
            gradients = [
                penalty.gradient(w) * (factor * upstream)
                for w, factor in zip(weights, ctx.factors, strict=True)
            ]
            return None, None, *gradients
        parts = [torch.zeros_like(distributed.local(w)) for w in weights]
        shards = [distributed.like(part, w) for part, w in zip(parts, weights, strict=True)]
        for factor in dict.fromkeys(ctx.factors):
            mine = [index for index, f in enumerate(ctx.factors) if f == factor]
            add_gradients(penalty, [shards[i] for i in mine], [weights[i] for i in mine], factor)
        if upstream != 1:
            torch._foreach_mul_(parts, upstream)
        return None, None, *shards
