"""A formula of several parameters: its value and gradients, whatever their layout.

The formula is given whole parameters, halves in float32; sharded ones are gathered for it.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

import torch

from regplug.backend.precision import widened
from regplug.backend.shards import full, is_spread, like, part
from regplug.errors import UnsupportedError

__all__ = ["gradients", "value"]

Formula: TypeAlias = Callable[..., torch.Tensor]


def gradients(
    formula: Formula, group: Sequence[torch.Tensor], wanted: Collection[int]
) -> dict[int, torch.Tensor]:
    """Return the gradient of a group's value, whole, for its members of these ids.

    Args:
        formula: ``(*ws)``, a 0-d tensor.
        group: the parameters; one may stand in it twice.
        wanted: ids of those that take part. The others are constants.
    """
    with torch.enable_grad():
        leaves = {
            id(w): widened(full(w).detach()).detach().requires_grad_(id(w) in wanted) for w in group
        }
        found = formula(*(leaves[id(w)] for w in group))
        free = {key: leaf for key, leaf in leaves.items() if leaf.requires_grad}
        if not found.requires_grad:
            return {}
        made = torch.autograd.grad(found, list(free.values()), allow_unused=True)
    return {key: g for key, g in zip(free, made, strict=True) if g is not None}


def value(
    name: str, formula: Formula, group: Sequence[torch.Tensor], covered: Collection[int]
) -> torch.Tensor:
    """Return the value of a group, differentiable by those of its members that are covered."""
    if any(is_spread(w) for w in group):
        of = {id(w): w for w in group if id(w) in covered}
        found: torch.Tensor = _Gathered.apply(name, formula, group, *of.values())  # type: ignore[no-untyped-call]
        return found
    return formula(*(widened(w) if id(w) in covered else widened(w.detach()) for w in group))


class _Gathered(torch.autograd.Function):
    """The value of a group of which each rank has parts; its gradients are placed as they are."""

    @staticmethod
    def forward(
        ctx: Any,
        name: str,
        formula: Formula,
        group: Sequence[torch.Tensor],
        *covered: torch.Tensor,
    ) -> torch.Tensor:
        ctx.name, ctx.formula, ctx.group, ctx.of = name, formula, group, covered
        return formula(*(widened(full(w).detach()) for w in group))

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:
        (upstream,) = outputs
        if torch.is_grad_enabled():
            raise UnsupportedError(
                f"{ctx.name}: a loss of sharded weights that belong together can't be "
                "differentiated twice: use delivery='step'"
            )
        found = gradients(ctx.formula, ctx.group, {id(w) for w in ctx.of})
        made = []
        for w in ctx.of:
            whole = found.get(id(w))
            whole = torch.zeros(w.shape, device=w.device) if whole is None else whole
            mine = part(whole * upstream.to(whole), w).to(w.dtype)
            made.append(like(mine, w))
        return None, None, None, *made
