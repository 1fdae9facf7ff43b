"""The max-norm constraint: no row or column of a weight is longer than a bound."""

import torch

from regplug import Scheduled, SessionView, hookimpl
from regplug.schedules import ScheduleLike
from regplug_builtins._constraint import Constraint
from regplug_builtins._groups import check_dimensions, checked_groups, norms

__all__ = ["MaxNorm"]


class MaxNorm(Constraint):
    r"""The max-norm constraint: after each step, w_g ← w_g·min(1, limit/‖w_g‖₂) for each group.

    A row that is longer than the bound is projected to it, the others are left alone. This is
    Keras' ``MaxNorm`` without its ε = 1e-7. Keras' default ``axis=0`` of its transposed kernels
    ``(in, out)`` is the row here, the weights that lead to one output.

    Args:
        limit: the bound, a finite number ≥ 0 or a schedule of the step count; 3 or 4 are usual.
        groups: ``"rows"`` or ``"columns"``; a row is an output unit, or a convolution's filter.
        where: the parameters, by default ``"weights"``; each of two or more dimensions.
        name: the key of its metrics.

    Raises:
        SpecError: ``limit`` is negative or not finite, or ``groups`` is none of these.
        SelectionError: ``where`` is no selection, covers nothing, or selects a vector.
        UnsupportedError: the optimizer is LBFGS, whose line search a constraint breaks.

    References:
        Nathan Srebro, Adi Shraibman, "Rank, Trace-Norm and Max-Norm", 2005,
        https://doi.org/10.1007/11503415_37.
        Nitish Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from
        Overfitting", 2014, section 5.1, https://jmlr.org/papers/v15/srivastava14a.html.

    >>> MaxNorm(1.0).constrained(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """

    projects = True

    limit = Scheduled(off=None)

    def __init__(
        self,
        limit: ScheduleLike,
        *,
        groups: str = "rows",
        where: object = "weights",
        name: str | None = None,
    ) -> None:
        super().__init__(where=where, name=name)
        self.limit = limit
        self.groups = checked_groups(groups)

    @property
    def orientation(self) -> str:  # type: ignore[override]
        """Rows, or columns, are to be where the formula looks for them in any layer's weight."""
        return self.groups

    @hookimpl
    def on_attach(self, session: SessionView) -> None:
        """Check the shapes."""
        check_dimensions(self.name, session, self._selection)

    def constrained(self, w: torch.Tensor) -> torch.Tensor:
        """Return the groups, none longer than the bound."""
        sizes = norms(w, self.groups)
        return torch.where(sizes > self.limit, w * (self.limit / sizes), w)
