"""Proximal operators after the update, with the step that the optimizer effectively takes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from regplug.backend import shards
from regplug.backend.blocks import TINY, batches
from regplug.backend.groups import Group
from regplug.backend.layouts import Layout
from regplug.backend.private import flattened, unflattened
from regplug.backend.update_rules import UpdateRule
from regplug.kernels.pieces import (
    NO_LAYOUTS,
    Layouts,
    companions,
    is_small,
    whole_companions,
    widened,
)

if TYPE_CHECKING:
    from regplug.penalty import Penalty

__all__ = ["each_proximal_", "elementwise_proximal", "proximal"]


def proximal(
    penalty: "Penalty",
    weights: Sequence[torch.Tensor],
    step: Any,
    layouts: Layouts = NO_LAYOUTS,
) -> None:
    """Replace ``weights`` by their proximal points for one step that they all have."""
    if penalty.separable:
        parts = [shards.local(w) for w in weights]
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
            parts = {name: widened(shards.local(state[name])) for name in names}
            step = rule.step(group, {**state, **parts}, shards.local(used))
            whole = shards.full(shards.like(step, w))
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
    columns = [[shards.local(t)] for t in (w, used, *(state[name] for name in names))]
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
    tensors = (widened(shards.full(w)), *whole_companions(penalty, w))
    if layout is None:
        own, *beside = tensors
        whole = penalty.proximal(own, step, *beside)
    else:
        if isinstance(step, torch.Tensor) and step.shape == w.shape:
            step = penalty._arranged(step, layout)
        own, *beside = (penalty._arranged(t, layout) for t in tensors)
        whole = penalty._restored(penalty.proximal(own, step, *beside), layout)
    shards.local(w).copy_(shards.part(whole, w))
