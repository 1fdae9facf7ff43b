"""Proximal operators after the update, with the step that the optimizer effectively takes."""

from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import TYPE_CHECKING, Any

import torch

from regplug.backend import shards
from regplug.backend.blocks import TINY, batches
from regplug.backend.groups import Group
from regplug.backend.layouts import Layout
from regplug.backend.precision import widened
from regplug.backend.private import flattened, unflattened
from regplug.delivery.compiled import compiled_proximal
from regplug.kernels.kernel import Kernel
from regplug.kernels.pieces import (
    FEW,
    NO_LAYOUTS,
    Layouts,
    is_small,
)

if TYPE_CHECKING:
    from regplug.backend.update_rules import UpdateRule

__all__ = ["apply_elementwise_steps", "apply_one_step"]


def apply_one_step(
    kernel: Kernel,
    weights: Sequence[torch.Tensor],
    step: Any,
    layouts: Layouts = NO_LAYOUTS,
) -> None:
    """Replace ``weights`` by their proximal points for one step that they all have."""
    if kernel.separable:
        few = len(weights) <= FEW and kernel.plain and is_small(weights)
        if few and not kernel.choice.pays(weights):
            kernel.proximal_(list(weights), step)
            return
        _apply_one_step(kernel, [weights, *kernel.companion_parts(weights)], step)
        return
    rows: Sequence[int] = range(len(weights))
    if kernel.rows is not None and kernel.rows.serves(*weights):
        moved, scalars = _moved(kernel, step, len(weights))
        columns = [weights, *kernel.companion_parts(weights)]
        found = [layouts.get(w) for w in weights]
        rows = kernel.rows.apply(moved, columns, found, scalars=scalars)
    for row in rows:
        _apply_whole(kernel, weights[row], step, layouts.get(weights[row]))


def _apply_one_step(kernel: Kernel, columns: Sequence[Sequence[torch.Tensor]], step: Any) -> None:
    moved, scalars = _moved(kernel, step, len(columns[0]))

    def by_torch(columns: Sequence[Sequence[torch.Tensor]]) -> None:
        for pieces, *companions in batches(columns):
            kernel.proximal_(pieces, step, *companions)

    kernel.choice.execute(moved, columns, by_torch, scalars)


def _moved(
    kernel: Kernel, step: Any, count: int
) -> tuple[Callable[..., torch.Tensor], list[list[torch.Tensor]]]:
    """Return the formula of a proximal point, and the step as a column if it is on a device."""
    if not isinstance(step, torch.Tensor) or step.is_cpu:
        return lambda w, *companions: kernel.proximal(w, step, *companions), []

    def moved(w: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        *companions, own = others
        return kernel.proximal(w, own, *companions)

    return moved, [[step] * count]


def apply_elementwise_steps(
    kernel: Kernel,
    rule: "UpdateRule",
    group: Group,
    states: Mapping[torch.Tensor, Mapping[str, Any]],
    weights: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    layouts: Layouts = NO_LAYOUTS,
) -> None:
    """Replace each of ``weights`` by its proximal point for the step that each element has."""
    own = _states_of(weights, states)
    updated = list(weights)
    # A gradient may be sparse, and most rules need none.
    used = list(gradients if rule.uses_gradient else weights)
    if not all(own):  # the optimizer left some alone
        moved = [row for row, state in enumerate(own) if state]
        own, updated, used = ([column[row] for row in moved] for column in (own, updated, used))
    # As Kernel.pays says it, without a call more in each step.
    if kernel.rows is None:
        pays = kernel.separable and kernel.choice.pays(updated)
    else:
        pays = kernel.rows.serves(*updated)
    if pays:
        left = compiled_proximal(kernel, rule, group, own, updated, used, layouts)
        own, updated, used = ([column[row] for row in left] for column in (own, updated, used))
    if updated:
        _apply_each(kernel, rule, group, own, updated, used, layouts)


def _states_of(weights: Sequence[torch.Tensor], states: Mapping[torch.Tensor, Any]) -> list[Any]:
    """Return what the optimizer keeps of each weight, None or nothing of what it left alone."""
    # Mostly in the same order, and to look a tensor up is a call of Python.
    if len(states) == len(weights) and all(map(is_, states, weights)):
        return list(states.values())
    return list(map(states.get, weights))


def _apply_each(
    kernel: Kernel,
    rule: "UpdateRule",
    group: Group,
    states: Sequence[Mapping[str, Any]],
    weights: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    layouts: Layouts,
) -> None:
    names = rule.tensors(group)
    alike: dict[Any, list[tuple[torch.Tensor, ...]]] = {}
    waits = False  # to read a number
    for name in rule.numbers:
        number = states[0][name]
        waits = waits or (isinstance(number, torch.Tensor) and not number.is_cpu)
    for w, used, state in zip(weights, gradients, states, strict=True):
        if not kernel.separable:
            parts = {name: widened(shards.local(state[name])) for name in names}
            step = rule.step(group, {**state, **parts}, shards.local(used))
            whole = shards.full(shards.like(step, w))
            _apply_whole(kernel, w, whole, layouts.get(w))
        elif not (kernel.plain and is_small([w])):
            _apply_blockwise(kernel, rule, group, state, w, used)
        elif w.numel() >= TINY or waits:
            kernel.proximal_([w], rule.step(group, state, used))
        else:
            numbers = tuple(map(float, map(state.__getitem__, rule.numbers)))
            moments = map(state.__getitem__, names)
            row = (w, used, *moments) if rule.uses_gradient else (w, *moments)
            alike.setdefault((w.dtype, w.device, numbers), []).append(row)
    for (_, _, numbers), rows in alike.items():
        state = dict(zip(rule.numbers, numbers, strict=True))
        for ws, *inputs in batches(list(zip(*rows, strict=True))):
            _apply_joined(kernel, rule, group, state, ws, inputs)


def _apply_blockwise(
    kernel: Kernel,
    rule: "UpdateRule",
    group: Group,
    state: Mapping[str, Any],
    w: torch.Tensor,
    used: torch.Tensor,
) -> None:
    names = rule.tensors(group)
    inputs = [[shards.local(t)] for t in (w, used, *(state[name] for name in names))]
    for batch in batches([*inputs, *kernel.companion_parts([w])]):
        (weight,), (gradient,), *others = batch
        pieces, companions = others[: len(names)], others[len(names) :]
        moments = {name: widened(piece) for name, (piece,) in zip(names, pieces, strict=True)}
        step = rule.step(group, {**state, **moments}, gradient)
        kernel.proximal_([weight], step, *companions)


def _apply_joined(
    kernel: Kernel,
    rule: "UpdateRule",
    group: Group,
    state: Mapping[str, Any],
    weights: Sequence[torch.Tensor],
    inputs: Sequence[Sequence[torch.Tensor]],
) -> None:
    """Replace tiny weights as one flat tensor: the calls for each would cost far more.

    ``inputs`` has a list for each tensor that the rule needs of a weight.
    """
    flat, rest = flattened(weights), list(map(flattened, inputs))
    used, moments = (rest[0], rest[1:]) if rule.uses_gradient else (flat, rest)
    tensors = dict(zip(rule.tensors(group), moments, strict=True))
    kernel.proximal_([flat], rule.step(group, {**state, **tensors}, used))
    torch._foreach_copy_(list(weights), unflattened(flat, weights))


def _apply_whole(kernel: Kernel, w: torch.Tensor, step: Any, layout: Layout | None) -> None:
    tensors = (widened(shards.full(w).detach()), *kernel.whole_companions(w))
    if layout is None:
        whole = kernel.proximal(tensors[0], step, *tensors[1:])
    else:
        if isinstance(step, torch.Tensor) and step.shape == w.shape:
            step = kernel.arranged(step, layout)
        arranged, *companions = (kernel.arranged(t, layout) for t in tensors)
        whole = kernel.restored(kernel.proximal(arranged, step, *companions), layout)
    shards.local(w).copy_(shards.part(whole, w))
