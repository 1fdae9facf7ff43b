"""Penalties whose strength is another for each part of what they cover, in one launch for all.

A kernel reads the strength of each tensor from a column of its table. Where none serves, or none
pays, each part is delivered as a plugin of its own would be.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from regplug.backend.blocks import batches
from regplug.backend.groups import Group
from regplug.backend.precision import widened
from regplug.delivery import at_step
from regplug.delivery.by_row import ByRow
from regplug.delivery.compiled import compiled_proximal
from regplug.delivery.proximal import apply_elementwise_steps, apply_one_step
from regplug.delivery.together import Share
from regplug.kernels.kernel import Gradient, Kernel
from regplug.kernels.pieces import NO_LAYOUTS, Layouts
from regplug.selection.parts import Strengths

if TYPE_CHECKING:
    from regplug.backend.update_rules import UpdateRule

__all__ = ["Shares", "add_gradients", "apply_proximal", "kernel_of_part"]


Shares: TypeAlias = dict[torch.Tensor, Share]
"""The share of each weight in an objective."""


def add_gradients(
    kernel: Kernel,
    strengths: Strengths,
    gradients: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    factors: Mapping[int, float],
    layouts: Layouts = NO_LAYOUTS,
) -> None:
    """Add to each of ``gradients`` the gradient of the penalty at the strength of its part.

    Args:
        kernel: of the penalty.
        strengths: of the parts.
        gradients: of one dtype and device.
        weights: likewise.
        factors: what the gradients of each part are multiplied by; what has none is left alone.
        layouts: of weights that are not ``(out, in, …)``.
    """
    rows = [row for row, w in enumerate(weights) if strengths.parts.number(w) in factors]
    if not rows:
        return
    gradients, weights = [gradients[row] for row in rows], [weights[row] for row in rows]
    parts = [strengths.parts.number(w) for w in weights]
    left: Sequence[int] = range(len(weights))
    is_written = kernel.rows is None or kernel.has_gradient
    if len(set(parts)) > 1 and is_written and kernel.pays(weights):
        left = _add_in_one_launch(kernel, strengths, gradients, weights, parts, factors, layouts)
    for part, own in strengths.parts.rows([weights[row] for row in left]).items():
        some = [left[row] for row in own]
        with strengths.at(part):
            at_step.add_gradients(
                kernel,
                [gradients[row] for row in some],
                [weights[row] for row in some],
                factors[part],
                layouts,
            )


def _add_in_one_launch(
    kernel: Kernel,
    strengths: Strengths,
    gradients: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    parts: Sequence[int],
    factors: Mapping[int, float],
    layouts: Layouts,
) -> Sequence[int]:
    by_row = ByRow(strengths, parts, weights[0].device, factors)
    count = len(by_row.columns)

    def added(g: Any, w: Any, *others: Any) -> Any:
        companions, (factor, *symbols) = others[:-count], others[-count:]
        with by_row.reading(symbols):
            return g + factor * kernel.symbolic_gradient(w, *companions)

    if kernel.rows is not None:
        columns = [gradients, weights, *kernel.companion_parts(weights)]
        found = [layouts.get(w) for w in weights]
        return kernel.rows.apply(added, columns, found, scalars=by_row.columns)

    def by_torch(sample: Sequence[Sequence[torch.Tensor]], row: int) -> None:
        with by_row.at(row):
            for gs, ws, *companions in batches(sample):
                kernel.add_gradients(gs, [widened(w) for w in ws], factors[parts[row]], *companions)

    columns = [gradients, weights, *kernel.companion_parts(weights)]
    return kernel.choice.apply(added, columns, 0, by_torch, by_row.columns, by_row=True)


def apply_proximal(
    kernel: Kernel,
    strengths: Strengths,
    active: Collection[int],
    rule: "UpdateRule",
    group: Group,
    states: Mapping[torch.Tensor, Mapping[str, Any]],
    weights: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    layouts: Layouts = NO_LAYOUTS,
) -> None:
    """Replace each of ``weights`` by its proximal point at the strength of its part.

    Args:
        kernel: of the penalty.
        strengths: of the parts.
        active: the parts in which there is anything to do.
        rule: of the optimizer's effective step.
        group: of the weights.
        states: what the optimizer keeps.
        weights: those of the group that take part.
        gradients: theirs.
        layouts: of weights that are not ``(out, in, …)``.
    """
    rows = [
        row
        for row, w in enumerate(weights)
        if strengths.parts.number(w) in active and (not rule.elementwise or states.get(w))
    ]
    weights, gradients = [weights[row] for row in rows], [gradients[row] for row in rows]
    parts = [strengths.parts.number(w) for w in weights]
    left: Sequence[int] = range(len(weights))
    if len(set(parts)) > 1 and kernel.pays(weights):
        by_row = ByRow(strengths, parts, weights[0].device)
        if rule.elementwise:
            own = [states[w] for w in weights]
            used = gradients if rule.uses_gradient else weights
            left = compiled_proximal(kernel, rule, group, own, weights, used, layouts, by_row)
        else:
            step = rule.step(group, {}, gradients[0])
            left = _move_in_one_launch(kernel, by_row, weights, step, layouts)
    for part, those in strengths.parts.rows([weights[row] for row in left]).items():
        some = [weights[left[row]] for row in those]
        of_some = [gradients[left[row]] for row in those]
        with strengths.at(part):
            if rule.elementwise:
                apply_elementwise_steps(kernel, rule, group, states, some, of_some, layouts)
            else:
                apply_one_step(kernel, some, rule.step(group, {}, of_some[0]), layouts)


def _move_in_one_launch(
    kernel: Kernel, by_row: ByRow, weights: Sequence[torch.Tensor], step: Any, layouts: Layouts
) -> Sequence[int]:
    waits = isinstance(step, torch.Tensor) and not step.is_cpu
    scalars = [*([[step] * len(weights)] if waits else []), *by_row.columns]
    count = len(scalars)

    def moved(w: Any, *others: Any) -> Any:
        companions, symbols = others[: len(others) - count], others[len(others) - count :]
        own, symbols = (symbols[0], symbols[1:]) if waits else (step, symbols)
        with by_row.reading(symbols):
            return kernel.proximal(w, own, *companions)

    if kernel.rows is not None:
        columns = [weights, *kernel.companion_parts(weights)]
        found = [layouts.get(w) for w in weights]
        return kernel.rows.apply(moved, columns, found, scalars=scalars)

    def by_torch(sample: Sequence[Sequence[torch.Tensor]], row: int) -> None:
        with by_row.at(row):
            for pieces, *companions in batches(sample):
                kernel.proximal_(pieces, step, *companions)

    columns = [weights, *kernel.companion_parts(weights)]
    return kernel.choice.apply(moved, columns, 0, by_torch, scalars, by_row=True)


def kernel_of_part(kernel: Kernel, strengths: Strengths, part: int) -> Kernel:
    """Return the kernel of the formula as it is in a part."""

    def within(formula: Any) -> Any:
        def called(*arguments: Any) -> Any:
            with strengths.at(part):
                return formula(*arguments)

        return called

    return replace(
        kernel,
        value=within(kernel.value),
        gradient=Gradient(kernel.name, within(kernel.gradient.formula)),
        proximal=within(kernel.proximal),
        gradients=within(kernel.gradients),
        add_gradients=within(kernel.add_gradients),
        proximal_=within(kernel.proximal_),
        choice=kernel.choice.other(("part", part)),
    )
