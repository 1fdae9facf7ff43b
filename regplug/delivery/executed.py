"""What executes a formula, for people: a compiler's kernel, or why it is none."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from regplug.backend import shards
from regplug.kernels.kernel import Kernel
from regplug.selection.coverage import Covered

if TYPE_CHECKING:
    from regplug.kernels.symbols import Symbol

__all__ = ["executed_by"]


def executed_by(kernel: Kernel, delivery: str, covered: Sequence[Covered]) -> list[str]:
    """Return lines that say so; none where torch's own operations do it because nothing else could.

    Args:
        kernel: of the formula.
        delivery: how it is delivered.
        covered: what it acts on.
    """

    def added(g: torch.Tensor, w: "Symbol", *companions: "Symbol") -> torch.Tensor:
        return torch.add(g, kernel.symbolic_gradient(w, *companions))

    def moved(w: "Symbol", *companions: "Symbol") -> Any:
        return kernel.proximal(w, 1.0, *companions)

    if delivery not in ("step", "proximal"):
        return []
    if kernel.rows is not None:
        every = [entry.parameter for entry in covered]
        by = {
            kernel.rows.describe(like, *[other for other in every if other is not like])
            for like in _kinds(every)
        }
        return [_line(name) for name in sorted(by - {"foreach"})]
    if not kernel.separable:
        return []
    parts = [shards.local(entry.parameter) for entry in covered]
    if not parts or not kernel.choice.pays(parts):
        why = kernel.choice.why_not
        return [] if why is None else [f"in torch's own operations ({why})"]
    beside = len(kernel.companion_parts([covered[0].parameter]))
    formula, columns = (added, 2) if delivery == "step" else (moved, 1)
    found = {kernel.choice.describe(formula, columns + beside, part) for part in _kinds(parts)}
    # Where no compiler serves there is nothing to tell.
    return [_line(name) for name in sorted(found - {"foreach"})]


def _line(name: str) -> str:
    plain, _, why = name.partition(" ")
    return f"in torch's own operations {why}" if plain == "foreach" else f"in one kernel ({name})"


def _kinds(parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return list({(part.dtype, part.device, type(part)): part for part in parts}.values())
