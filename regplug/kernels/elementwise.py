"""Element-wise formulas of any plugin, in one launch for all tensors: :class:`Elementwise`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from regplug.backend.blocks import batches
from regplug.backend.precision import widened
from regplug.kernels.choice import Choice

__all__ = ["Elementwise"]


class Elementwise:
    """Executes element-wise formulas over lists of tensors, in place.

    Where a compiler serves it is one kernel over all of them, and one pass over memory; else, and
    for what can't be traced or is small, torch's own operations do the same in blocks that fit the
    cache. Halves are computed in float32 either way. Keep one object for each formula, and
    call it at each step: what it compiles is kept, and numbers in the formula are read anew.

    Args:
        name: whose formula it is, for messages.
        kernels: which kernels may execute it, as ``session.kernels`` says.

    >>> w = [torch.tensor([-1.0, 2.0]), torch.tensor([0.5])]
    >>> g = [torch.tensor([1.0, 1.0]), torch.tensor([-1.0])]
    >>> run = Elementwise("mine")
    >>> run(lambda w, g: torch.where(w * g > 0, w / 2, w), w, g)    # written to the first list
    >>> w
    [tensor([-1.,  1.]), tensor([0.5000])]
    """

    def __init__(self, name: str, kernels: str = "auto") -> None:
        self._choice = Choice(name, kernels)

    def __call__(
        self,
        formula: Callable[..., torch.Tensor],
        *columns: Sequence[torch.Tensor],
        scalars: Sequence[torch.Tensor] = (),
    ) -> None:
        """Replace each tensor of the first list by what the formula makes of it.

        Args:
            formula: given a tensor of each list, then the scalars: the new value of the first.
            columns: lists of equal length, each row of one shape: plain tensors, as
                :func:`regplug.local` gives them.
            scalars: 0-d tensors on the same device, whose numbers are not to be waited for.
        """

        def by_torch(columns: Sequence[Sequence[torch.Tensor]]) -> None:
            for batch in batches(columns):
                for row in zip(*batch, strict=True):
                    row[0].copy_(formula(*map(widened, row), *scalars))

        numbers = [[scalar] * len(columns[0]) for scalar in scalars]
        self._choice.execute(formula, columns, by_torch, numbers)

    def describe(
        self, formula: Callable[..., Any], columns: int, tensors: Sequence[torch.Tensor]
    ) -> str:
        """Return what executes a formula of that many lists: a compiler's name, or ``foreach``."""
        if not tensors or not self._choice.pays(tensors):
            return "foreach"
        return self._choice.describe(formula, columns, tensors[0])
