"""The unit-norm constraint: every row or column of a weight has length 1."""

import torch

from regplug import SessionView, hookimpl
from regplug_builtins._constraint import Constraint
from regplug_builtins._groups import check_dimensions, checked_groups, norms

__all__ = ["UnitNorm"]


class UnitNorm(Constraint):
    r"""The unit-norm constraint: after each step, w_g ← w_g/‖w_g‖₂ for each row or column.

    A group that is zero has no direction and stays zero. This is Keras' ``UnitNorm`` without its
    ε = 1e-7. Keras' default ``axis=0`` of its transposed kernels ``(in, out)`` is the row here.

    Args:
        groups: ``"rows"`` or ``"columns"``; a row is an output unit, or a convolution's filter.
        where: the parameters, by default ``"weights"``; each of two or more dimensions.
        name: the key of its metrics.

    Raises:
        SpecError: ``groups`` is none of these.
        SelectionError: ``where`` is no selection, covers nothing, or selects a vector.
        UnsupportedError: the optimizer is LBFGS, whose line search a constraint breaks.

    References:
        Tim Salimans, Diederik P. Kingma, "Weight Normalization: A Simple Reparameterization to
        Accelerate Training of Deep Neural Networks", 2016, https://arxiv.org/abs/1602.07868
        (which has the length as a parameter of its own).
        Keras, ``keras.constraints.UnitNorm``, https://keras.io/api/layers/constraints/.

    >>> UnitNorm().constrained(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """

    projects = True

    def __init__(
        self, *, groups: str = "rows", where: object = "weights", name: str | None = None
    ) -> None:
        super().__init__(where=where, name=name)
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
        """Return the groups, each of length 1 or 0."""
        sizes = norms(w, self.groups)
        return w / torch.where(sizes > 0, sizes, 1)
