"""The group lasso, λ·Σ √n·‖w_g‖ over rows or columns: whole units become exactly zero."""

import math

import torch

from regplug import Penalty, SessionView, hookimpl
from regplug.schedules import ScheduleLike
from regplug_builtins._groups import as_matrix, check_dimensions, checked_groups, norms

__all__ = ["GroupLasso", "shrink_groups"]

_NEWTON_STEPS = 100  # a handful do; steps that differ by many orders of magnitude take some more


def shrink_groups(
    w: torch.Tensor, thresholds: float | torch.Tensor, steps: torch.Tensor | None = None
) -> torch.Tensor:
    r"""Return the rows of a matrix shrunk in norm: the proximal operator of c·‖u‖ for each row.

    With one step for all elements that is ``w·max(1 − c/‖w‖, 0)``. With a step sᵢ for each, it is
    the minimum of Σ (uᵢ − wᵢ)²/2sᵢ + c·‖u‖, which is 0 where ‖w/s‖ ≤ c. Elsewhere
    uᵢ = wᵢ·r/(r + c·sᵢ), with r = ‖u‖ the root of Σ wᵢ²/(r + c·sᵢ)² = 1. Newton's method finds it
    from below on the sum to the power −½, which is concave in r: the iterates only grow.

    Args:
        w: a matrix, one group a row.
        thresholds: c, a number.
        steps: shaped like ``w``, or None for steps that ``thresholds`` already contains.

    >>> shrink_groups(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    tensor([[2.4000, 3.2000],
            [0.0000, 0.0000]])
    """
    size = torch.linalg.vector_norm(w, dim=1, keepdim=True)
    if steps is None:
        shrunk: torch.Tensor = w * (1 - thresholds / size).clamp(min=0).nan_to_num()
        return shrunk
    # In units of the largest element, so that squares neither vanish nor overflow.
    unit = w.abs().amax(1, keepdim=True)
    unit = torch.where(unit > 0, unit, 1)
    w, shift, size = w / unit, thresholds * steps / unit, size / unit
    moving, present = shift > 0, w != 0
    # What has no step stays as it is, and alone keeps its group from vanishing.
    stay = torch.linalg.vector_norm(w.masked_fill(moving, 0), dim=1, keepdim=True)
    pull = (w / torch.where(moving, shift, 1)).masked_fill(~moving, 0)
    zero = (torch.linalg.vector_norm(pull, dim=1, keepdim=True) <= 1) & (stay == 0)
    r = torch.maximum(size - shift.amax(1, keepdim=True), stay)
    squares = w.square()
    for _ in range(_NEWTON_STEPS):
        reach = torch.where(present, r + shift, 1)
        phi = (squares / reach**2).sum(1, keepdim=True)
        slope = (squares / reach**3).sum(1, keepdim=True)
        grown = torch.maximum(r + (phi**1.5 - phi) / slope, r)
        grown = torch.where(zero | ~grown.isfinite(), r, grown)
        if bool((grown - r <= 2 * torch.finfo(w.dtype).eps * r).all()):
            break
        r = grown
    # 1 − shift/(r + shift) and not r/(r + shift), so that a step of 0 leaves w alone to the bit.
    u = (w - w * (shift / torch.where(present, r + shift, 1))) * unit
    return u.masked_fill(zero, 0)


class GroupLasso(Penalty):
    r"""The group lasso: λ·Σ √n·‖w_g‖₂ over the rows or columns of each weight, n their length.

    Its gradient is √n·w_g/‖w_g‖, 0 for a group that is zero. With ``delivery="proximal"`` groups
    become exactly zero: a row is an output unit (a convolution's filter), a column an input. The
    factor √n, the usual one, makes groups of different length comparable.

    The proximal operator is w_g·max(1 − step·λ·√n/‖w_g‖, 0); under optimizers with a step for each
    element, as Adam, it is found by :func:`shrink_groups`.

    Args:
        strength: λ, a finite number ≥ 0 or a schedule of the step count.
        groups: ``"rows"`` or ``"columns"``.
        where: the parameters, by default ``"weights"``; each of two or more dimensions.
        delivery: ``"auto"``, ``"loss"``, ``"step"``, ``"proximal"``, see :class:`regplug.Penalty`.
        name: the key of its state and metrics.

    Raises:
        SpecError: ``strength`` is negative or not finite, or ``groups`` or ``delivery`` is none
            of these.
        SelectionError: ``where`` is no selection, or selects a vector.

    References:
        Ming Yuan, Yi Lin, "Model Selection and Estimation in Regression with Grouped Variables",
        2006, https://doi.org/10.1111/j.1467-9868.2005.00532.x.
        Simone Scardapane et al., "Group Sparse Regularization for Deep Neural Networks", 2017,
        https://arxiv.org/abs/1607.00485.

    >>> penalty = GroupLasso(1.0)
    >>> penalty.value(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))          # √2·5
    tensor(7.0711)
    >>> penalty.proximal(torch.tensor([[3.0, 4.0], [0.1, 0.2]]), step=1 / 2**0.5)
    tensor([[2.4000, 3.2000],
            [0.0000, 0.0000]])
    """

    elementwise_steps = True
    composition = "groups"

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

    @staticmethod
    def _root(w: torch.Tensor, sizes: torch.Tensor) -> float:
        return math.sqrt(w.numel() / max(sizes.numel(), 1))

    def value(self, w: torch.Tensor) -> torch.Tensor:
        """Return Σ √n·‖w_g‖."""
        sizes = norms(w, self.groups)
        return sizes.sum() * self._root(w, sizes)

    def gradient(self, w: torch.Tensor) -> torch.Tensor:
        """Return √n·w_g/‖w_g‖, 0 for a group that is zero."""
        sizes = norms(w, self.groups)
        return w * (self._root(w, sizes) / torch.where(sizes > 0, sizes, 1))

    def proximal(self, w: torch.Tensor, step: float | torch.Tensor) -> torch.Tensor:
        """Return the groups shrunk in norm, by step·λ·√n where all elements have one step."""
        matrix = as_matrix(w, self.groups)
        strength = self.strength * math.sqrt(matrix.shape[1])
        if isinstance(step, torch.Tensor) and step.ndim > 0:
            matrix = shrink_groups(matrix, strength, as_matrix(step, self.groups))
        else:
            matrix = shrink_groups(matrix, step * strength)
        if self.groups == "rows":
            return matrix.view_as(w)
        return matrix.view(w.transpose(0, 1).shape).transpose(0, 1)
