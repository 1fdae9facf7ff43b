"""The optimizer's own step for each element, taken into one kernel with the proximal operator."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch

from regplug.backend import shards
from regplug.backend.groups import Group
from regplug.backend.precision import widened
from regplug.kernels.kernel import Kernel
from regplug.kernels.pieces import NO_LAYOUTS, Layouts

if TYPE_CHECKING:
    from regplug.backend.update_rules import UpdateRule
    from regplug.delivery.by_row import ByRow

__all__ = ["compiled_proximal"]


def compiled_proximal(
    kernel: Kernel,
    rule: "UpdateRule",
    group: Group,
    states: Sequence[Mapping[str, Any]],
    weights: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    layouts: Layouts = NO_LAYOUTS,
    strengths: "ByRow | None" = None,
) -> Sequence[int]:
    """Replace weights by their proximal points in one launch, as far as a kernel can.

    The kernel reads the second moments and computes each element's step in registers. The numbers
    of the optimizer's states (step counts) are read by it, too: they may be on a device. So are
    the strengths of each weight, where they are by pattern.

    Returns:
        The rows that are left.
    """
    names = rule.tensors(group)
    columns: list[Sequence[torch.Tensor]] = [weights]
    if rule.uses_gradient:
        columns.append(gradients)
    start = len(columns)
    columns += [list(map(itemgetter(name), states)) for name in names]
    if kernel.rows is not None:
        columns[1:] = map(shards.locals_of, columns[1:])
    end = len(columns)
    columns += kernel.companion_parts(weights)
    scalars, known = _scalars(rule, states, group, weights[0].device)

    def moved(w: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        tensors, numbers = others[: len(columns) - 1], others[len(columns) - 1 :]
        state = {**known, **dict(zip(names, tensors[start - 1 : end - 1], strict=True))}
        numbers, symbols = numbers[: len(scalars)], numbers[len(scalars) :]
        state.update(zip(scalars, numbers, strict=True))
        own = {**group, "lr": state["lr"]} if "lr" in scalars else group
        step = rule.step(own, state, tensors[0] if rule.uses_gradient else w)
        with strengths.reading(symbols) if strengths is not None else nullcontext():
            return kernel.proximal(w, step, *tensors[end - 1 :])

    def by_torch(sample: Sequence[Sequence[torch.Tensor]], row: int = 0) -> None:
        with strengths.at(row) if strengths is not None else nullcontext():
            moved_by_torch(sample, row)

    def moved_by_torch(sample: Sequence[Sequence[torch.Tensor]], row: int) -> None:
        for w, *others in zip(*sample, strict=True):
            moments = map(widened, others[start - 1 : end - 1])
            state = {**states[row], **dict(zip(names, moments, strict=True))}
            step = rule.step(group, state, others[0] if rule.uses_gradient else w)
            kernel.proximal_([w], step, *([c] for c in others[end - 1 :]))

    all_scalars = [*scalars.values(), *(strengths.columns if strengths is not None else ())]
    if kernel.rows is not None:
        return kernel.rows.apply(
            moved,
            columns,
            [layouts.get(w) for w in weights],
            scalars=all_scalars,
            nonnegative=range(start, end),
        )
    return kernel.choice.apply(
        moved,
        columns,
        0,
        by_torch,
        all_scalars,
        nonnegative=range(start, end),
        by_row=True,
    )


def _scalars(
    rule: "UpdateRule", states: Sequence[Mapping[str, Any]], group: Group, device: torch.device
) -> tuple[dict[str, list[torch.Tensor]], dict[str, Any]]:
    """Return the numbers that are tensors, one for each weight, and those that all have."""
    scalars: dict[str, list[torch.Tensor]] = {}
    known: dict[str, Any] = {}
    for name in rule.numbers:
        values = [state[name] for state in states]
        if isinstance(values[0], torch.Tensor) and values[0].device == device:
            scalars[name] = values
        elif len(set(numbers := [float(value) for value in values])) == 1:
            # Kept by the host, as Adam keeps its step counts unless it is fused or capturable: a
            # kernel on a device can't read them there.
            known[name] = numbers[0]
        else:
            from regplug.kernels.packed import sent

            sent_there = sent(torch.tensor(numbers, dtype=torch.float64), device)
            scalars[name] = list(sent_there.unbind())
    lr = group["lr"]
    if isinstance(lr, torch.Tensor) and not lr.is_cpu:
        scalars["lr"] = [lr] * len(states)
    return scalars, known
