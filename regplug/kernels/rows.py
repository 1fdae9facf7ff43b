"""Formulas of rows or columns, executed in one call for all groups of all weights."""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from regplug.backend.blocks import PLAIN
from regplug.backend.layouts import Layout
from regplug.kernels.choice import Asked

if TYPE_CHECKING:
    from regplug.kernels.row_engine import RowEngine

__all__ = ["RowKernel"]


class RowKernel(Asked):
    """The kernels of one formula of rows, or columns.

    The formula is given a weight with its groups where ``orientation`` says, outputs first and
    inputs second, and further tensors that correspond to it element by element. It returns what is
    shaped like the weight. It is recorded: all that it does must be element by element, or a sum,
    mean, norm or largest element over all dimensions but that of the groups, with
    ``keepdim=True``. Any other is no error; it is left to be done by torch's own operations.

    Args:
        name: the plugin's, for messages.
        orientation: ``"rows"`` or ``"columns"``.
        kernels: what may execute it, as ``session.kernels`` says.

    A plugin that acts on whole groups after a step may have one of its own:

    >>> import torch
    >>> def bounded(w):
    ...     sizes = torch.linalg.vector_norm(w, dim=1, keepdim=True)
    ...     return w / sizes.clamp(min=1)
    >>> rows, weights = RowKernel("bounded", "rows"), [torch.tensor([[3.0, 4.0]])]
    >>> for row in rows.apply(bounded, [weights]):             # the weights that no kernel took
    ...     _ = weights[row].copy_(bounded(weights[row]))
    >>> weights
    [tensor([[0.6000, 0.8000]])]
    """

    def __init__(self, name: str, orientation: str, kernels: str = "auto") -> None:
        super().__init__(name, kernels)
        self._orientation = orientation

    @cached_property
    def engine(self) -> "RowEngine":
        """What makes and launches them, which is imported when it is first needed."""
        from regplug.kernels.row_engine import RowEngine

        return RowEngine(self._name, self._orientation, self._kernels)

    def serves(self, *tensors: torch.Tensor) -> bool:
        """Whether there may be a kernel for these together, and it pays."""
        return self.pays(tensors) and self.engine.serves(tensors[0])

    def describe(self, like: torch.Tensor, *others: torch.Tensor) -> str:
        """Return the name of the kernel that a tensor gets, and why if it is none.

        It is known after the first event in which the formula was executed.

        Args:
            like: the tensor.
            others: those that are worked on together with it: few and small ones get no kernel.
        """
        made = vars(self).get("engine")
        is_known = made is not None and made.why_not is not None
        if type(like) not in PLAIN or not (is_known or self.pays([like, *others])):
            return "foreach"
        return self.engine.executed_by(like)

    def apply(
        self,
        formula: Callable[..., Any],
        columns: Sequence[Sequence[torch.Tensor]],
        layouts: Sequence[Layout | None] = (),
        *,
        target: int = 0,
        scalars: Sequence[Sequence[torch.Tensor]] = (),
        nonnegative: Collection[int] = (),
    ) -> Sequence[int]:
        """Execute a formula on all weights in one call, as far as a kernel can.

        Args:
            formula: given a tensor of each column, or a symbol for it.
            columns: lists of tensors of equal length; those of a row are shaped alike.
            layouts: of each row, if there are any that are not ``(out, in, …)``.
            target: the column that the results are written to.
            scalars: further columns, of 0-d tensors: one for all elements of a row.
            nonnegative: columns that have no negative elements.

        Returns:
            The rows that are left, for torch's own operations to do.
        """
        rows = range(len(columns[0]))
        if not rows or not self.serves(*columns[0]):
            return rows
        given = layouts or [None] * len(rows)
        return self.engine.apply(formula, columns, given, target, scalars, nonnegative)
