"""Orthogonality, λ times the mean |cosine| between the rows or columns of each weight."""

import torch
import torch.nn.functional as F

from regplug import Penalty, SessionView, hookimpl
from regplug.schedules import ScheduleLike
from regplug_builtins._groups import as_matrix, check_dimensions, checked_groups

__all__ = ["Orthogonal"]


class Orthogonal(Penalty):
    """The orthogonality penalty: λ·mean over pairs i < j of |⟨wᵢ, wⱼ⟩|/(‖wᵢ‖·‖wⱼ‖).

    It lies within [0, λ] for each weight: 0 where the rows are orthogonal, whatever their length.
    This is Keras' ``OrthogonalRegularizer`` of the same matrix. Note that Keras' kernels are
    transposed: the rows here (the weights of one output each) are the ``"columns"`` there.
    A weight with one row only has no pair, and the value 0.

    Args:
        strength: λ, a finite number ≥ 0 or a schedule of the step count.
        groups: ``"rows"`` or ``"columns"``; a row is an output unit, or a convolution's filter.
        where: the parameters, by default ``"weights"``; each of two or more dimensions.
        delivery: ``"auto"``, ``"loss"`` or ``"step"``, see :class:`regplug.Penalty`.
        name: the key of its state and metrics.

    Raises:
        SpecError: ``strength`` is negative or not finite, or ``groups`` or ``delivery`` is none
            of these.
        SelectionError: ``where`` is no selection, or selects a vector.

    References:
        Andrew Brock, Theodore Lim, J. M. Ritchie, Nick Weston, "Neural Photo Editing with
        Introspective Adversarial Networks", 2017, https://arxiv.org/abs/1609.07093.
        Keras, ``keras.regularizers.OrthogonalRegularizer``,
        https://keras.io/api/layers/regularizers/.

    >>> penalty = Orthogonal(1.0)
    >>> penalty.value(torch.eye(3))
    tensor(0.)
    >>> penalty.value(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 5.0]]))      # one pair of three
    tensor(0.3333)
    """

    def __init__(
        self,
        strength: ScheduleLike,
        *,
        groups: str = "rows",
        where: object = "weights",
        delivery: str = "auto",
        name: str | None = None,
    ) -> None:
        super().__init__(strength, where=where, delivery=delivery, name=name)  # type: ignore[arg-type]
        self.groups = checked_groups(groups)

    @property
    def orientation(self) -> str:  # type: ignore[override]
        """Rows, or columns, are to be where the formula looks for them in any layer's weight."""
        return self.groups

    @hookimpl
    def on_attach(self, session: SessionView) -> None:
        """Check the shapes, and what every penalty checks."""
        check_dimensions(self.name, session, self._selection)
        super().on_attach(session)

    def value(self, w: torch.Tensor) -> torch.Tensor:
        """Return the mean of the absolute cosines."""
        directions = F.normalize(as_matrix(w, self.groups), dim=1)
        count = directions.shape[0]
        cosines = (directions @ directions.T).triu(diagonal=1)
        return cosines.abs().sum() / max(count * (count - 1) / 2, 1)
