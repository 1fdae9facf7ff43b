"""How a penalty's formula reaches gradients and weights, whatever their layout.

A separable penalty is worked on in batches of flat pieces, shard by shard; any other on whole
tensors, which sharded parameters are gathered for. Halves are computed with in float32.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from regplug import distributed
from regplug.backend.private import flattened, unflattened
from regplug.blocks import BLOCK, TINY, batches
from regplug.layouts import Layout
from regplug.optimizers import Group, UpdateRule

if TYPE_CHECKING:
    from regplug.penalty import Penalty

__all__ = [
    "FEW",
    "HALVES",
    "add_each_gradient",
    "add_gradients",
    "companions",
    "each_proximal_",
    "elementwise_proximal",
    "is_small",
    "proximal",
    "tell_rounding",
    "whole_companions",
    "whole_gradient",
    "widened",
]

Layouts: TypeAlias = Mapping[torch.Tensor, Layout]
NO_LAYOUTS: Layouts = {}

HALVES = (torch.float16, torch.bfloat16)


FEW = 16
"""How many tensors are still few: it pays to look at each of them, and not to join them."""


def is_small(weights: Sequence[torch.Tensor]) -> bool:
    """Whether these can be worked on as they are: plain, not in halves, and of a block together."""
    size = 0
    for w in weights:
        if w.numel() == 0 or w.dtype in HALVES or distributed.is_dtensor(w):
            return False
        size += w.numel()
    return 0 < size <= BLOCK


def widened(w: torch.Tensor) -> torch.Tensor:
    """Return halves in float32, in which sums and small strengths survive; others as they are."""
    w = w.detach()
    return w.float() if w.dtype in HALVES else w


# --- gradients ---------------------------------------------------------------------------------


def add_gradients(
    penalty: "Penalty",
    gradients: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    factor: float,
    layouts: Layouts = NO_LAYOUTS,
) -> None:
    """Add ``factor · gradient(w)`` to each of ``gradients``, in place."""
    if penalty.separable:
        if len(weights) <= FEW and is_small(weights) and penalty._plain:
            penalty.add_gradients(list(gradients), list(weights), factor)
            return
        parts = [distributed.local(g) for g in gradients], [distributed.local(w) for w in weights]
        for gs, ws, *cs in batches([*parts, *companions(penalty, weights)]):
            # Not detached, which for a thousand small tensors would cost a third of it all.
            wide = [w.float() if w.dtype in HALVES else w for w in ws]
            if cs and not penalty._writes("add_gradients"):
                add_each_gradient(penalty, gs, wide, factor, cs)
            else:
                penalty.add_gradients(gs, wide, factor, *cs)
        return
    for g, w in zip(gradients, weights, strict=True):
        layout = layouts.get(w) if layouts else None
        beside = whole_companions(penalty, w)
        whole = whole_gradient(penalty, distributed.full(w), beside, layout)
        distributed.local(g).add_(distributed.part(whole, w), alpha=factor)


def whole_gradient(
    penalty: "Penalty",
    whole: torch.Tensor,
    companions: Sequence[torch.Tensor],
    layout: Layout | None,
) -> torch.Tensor:
    """Return the gradient of a formula that is given whole weights, in the layout that it wants."""
    if layout is None:
        return penalty._shaped_gradient(widened(whole), *companions)
    given = [penalty._arranged(t, layout) for t in (widened(whole), *companions)]
    return penalty._restored(penalty._shaped_gradient(*given), layout)


def add_each_gradient(
    penalty: "Penalty",
    gradients: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    factor: float,
    columns: Sequence[Sequence[torch.Tensor]] = (),
) -> None:
    """Do so by a call of the formula for each, with its companions out of ``columns``."""
    for g, w, *beside in zip(gradients, weights, *columns, strict=True):
        g.add_(penalty._shaped_gradient(w.detach(), *beside), alpha=factor)


def companions(
    penalty: "Penalty", weights: Sequence[torch.Tensor]
) -> list[tuple[torch.Tensor, ...]]:
    """Return a column of this rank's parts for each companion that the weights have."""
    if penalty._plain or not weights or not penalty.companions(weights[0]):
        return []
    rows = [[distributed.local(c) for c in penalty.companions(w)] for w in weights]
    return list(zip(*rows, strict=True))


def whole_companions(penalty: "Penalty", w: torch.Tensor) -> list[torch.Tensor]:
    """Return each companion of a weight as a whole tensor: a collective if it is sharded."""
    return [distributed.full(companion) for companion in penalty.companions(w)]


def tell_rounding(
    penalty: "Penalty",
    gradients: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    factor: float,
) -> None:
    """Warn if half-precision gradients are too coarse for most of what is about to be added."""
    for pair in zip(gradients, weights, strict=True):
        g, w = map(distributed.local, pair)
        if g.dtype not in HALVES or not penalty.separable or g.layout != torch.strided:
            continue
        if w.numel() == 0:
            continue
        beside = [distributed.local(c) for c in penalty.companions(pair[1])]
        added = penalty._shaped_gradient(widened(w), *beside) * factor
        lost = ((g + added).to(g.dtype) == g) & (added != 0)
        if lost.sum() * 2 > (added != 0).sum():
            warnings.warn(
                f"{penalty.name}: most of what it adds rounds away in {g.dtype} gradients; keep "
                "the weights in float32 (autocast does), or use a larger strength",
                stacklevel=2,
            )
            return


# --- proximal operators ------------------------------------------------------------------------


def proximal(
    penalty: "Penalty",
    weights: Sequence[torch.Tensor],
    step: Any,
    layouts: Layouts = NO_LAYOUTS,
) -> None:
    """Replace ``weights`` by their proximal points for one step that they all have."""
    if penalty.separable:
        parts = [distributed.local(w) for w in weights]
        for pieces, *cs in batches([parts, *companions(penalty, weights)]):
            _proximal_(penalty, pieces, step, cs)
        return
    for w in weights:
        _whole_proximal(penalty, w, step, layouts.get(w))


def elementwise_proximal(
    penalty: "Penalty",
    rule: UpdateRule,
    group: Group,
    states: Mapping[torch.Tensor, Mapping[str, Any]],
    weights: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    layouts: Layouts = NO_LAYOUTS,
) -> None:
    """Replace each of ``weights`` by its proximal point for the step that each element has."""
    names = rule.tensors(group)
    alike: dict[Any, list[tuple[torch.Tensor, ...]]] = {}
    for w, g in zip(weights, gradients, strict=True):
        state = states.get(w)
        if not state:
            continue  # the optimizer left it alone
        # A gradient may be sparse, and most rules need none.
        used = g if rule.uses_gradient else w
        if not penalty.separable:
            parts = {name: widened(distributed.local(state[name])) for name in names}
            step = rule.step(group, {**state, **parts}, distributed.local(used))
            whole = distributed.full(distributed.like(step, w))
            _whole_proximal(penalty, w, whole, layouts.get(w))
        elif not (penalty._plain and is_small([w])):
            _blockwise_proximal(penalty, rule, group, state, w, used)
        elif w.numel() >= TINY:
            penalty.proximal_([w], rule.step(group, state, used))
        else:
            numbers = tuple(float(state[name]) for name in rule.numbers)
            moments = [state[name] for name in names]
            row = (w, g, *moments) if rule.uses_gradient else (w, *moments)
            alike.setdefault((w.dtype, w.device, numbers), []).append(row)
    for (_, _, numbers), rows in alike.items():
        state = dict(zip(rule.numbers, numbers, strict=True))
        for ws, *columns in batches(list(zip(*rows, strict=True))):
            _joined_proximal(penalty, rule, group, state, ws, columns)


def _blockwise_proximal(
    penalty: "Penalty",
    rule: UpdateRule,
    group: Group,
    state: Mapping[str, Any],
    w: torch.Tensor,
    used: torch.Tensor,
) -> None:
    names = rule.tensors(group)
    columns = [[distributed.local(t)] for t in (w, used, *(state[name] for name in names))]
    for batch in batches([*columns, *companions(penalty, [w])]):
        (weight,), (gradient,), *others = batch
        pieces, cs = others[: len(names)], others[len(names) :]
        moments = {name: widened(piece) for name, (piece,) in zip(names, pieces, strict=True)}
        step = rule.step(group, {**state, **moments}, gradient)
        _proximal_(penalty, [weight], step, cs)


def _joined_proximal(
    penalty: "Penalty",
    rule: UpdateRule,
    group: Group,
    state: Mapping[str, Any],
    weights: Sequence[torch.Tensor],
    columns: Sequence[Sequence[torch.Tensor]],
) -> None:
    """Do so for tiny weights as one flat tensor: the calls for each would cost far more."""
    flat, *rest = (flattened(column) for column in (weights, *columns))
    used, moments = (rest[0], rest[1:]) if rule.uses_gradient else (flat, rest)
    tensors = dict(zip(rule.tensors(group), moments, strict=True))
    penalty.proximal_([flat], rule.step(group, {**state, **tensors}, used))
    torch._foreach_copy_(list(weights), unflattened(flat, weights))


def _proximal_(
    penalty: "Penalty",
    weights: list[torch.Tensor],
    step: Any,
    columns: Sequence[list[torch.Tensor]],
) -> None:
    if columns and not penalty._writes("proximal_"):
        each_proximal_(penalty, weights, step, columns)
    else:
        penalty.proximal_(weights, step, *columns)


def each_proximal_(
    penalty: "Penalty",
    weights: Sequence[torch.Tensor],
    step: Any,
    columns: Sequence[Sequence[torch.Tensor]] = (),
) -> None:
    """Do so by a call of the formula for each, with its companions out of ``columns``."""
    for w, *beside in zip(weights, *columns, strict=True):
        w.copy_(penalty.proximal(widened(w), step, *beside))


def _whole_proximal(penalty: "Penalty", w: torch.Tensor, step: Any, layout: Layout | None) -> None:
    tensors = (widened(distributed.full(w)), *whole_companions(penalty, w))
    if layout is None:
        own, *beside = tensors
        whole = penalty.proximal(own, step, *beside)
    else:
        if isinstance(step, torch.Tensor) and step.shape == w.shape:
            step = penalty._arranged(step, layout)
        own, *beside = (penalty._arranged(t, layout) for t in tensors)
        whole = penalty._restored(penalty.proximal(own, step, *beside), layout)
    distributed.local(w).copy_(distributed.part(whole, w))
