"""The group lasso, λ·Σ √n·‖w_g‖ over rows or columns: whole units become exactly zero."""

import torch

from regplug import Penalty, SessionView, hookimpl, iterated
from regplug.schedules import ScheduleLike
from regplug_builtins._groups import check_dimensions, checked_groups, length, norms, within

__all__ = ["GroupLasso", "shrink_groups"]

_NEWTON_STEPS = 30  # 17 is the most ever seen, of steps that differ by 150 orders of magnitude


def shrink_groups(
    w: torch.Tensor,
    thresholds: float | torch.Tensor,
    steps: torch.Tensor | None = None,
    groups: str = "rows",
) -> torch.Tensor:
    r"""Return rows, or columns, shrunk in norm: the proximal operator of c·‖u‖ for each of them.

    With one step for all elements that is ``w·max(1 − c/‖w‖, 0)``. With a step sᵢ for each, it is
    the minimum of Σ (uᵢ − wᵢ)²/2sᵢ + c·‖u‖, which is 0 where ‖w/s‖ ≤ c. Elsewhere
    uᵢ = wᵢ·r/(r + c·sᵢ), with r = ‖u‖ the root of Σ wᵢ²/(r + c·sᵢ)² = 1. Newton's method finds it
    from below on the sum to the power −½, which is concave in r: the iterates only grow.

    Args:
        w: a weight.
        thresholds: c, a number.
        steps: shaped like ``w``, or None for steps that ``thresholds`` already contains.
        groups: ``"rows"`` or ``"columns"``.

    >>> shrink_groups(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    tensor([[2.4000, 3.2000],
            [0.0000, 0.0000]])
    """
    size, inside = norms(w, groups), within(w, groups)
    if steps is None:
        shrunk: torch.Tensor = w * (1 - thresholds / size).clamp(min=0).nan_to_num()
        return shrunk
    # In units of the largest element, so that squares neither vanish nor overflow.
    unit = w.abs().amax(inside, keepdim=True)
    unit = torch.where(unit > 0, unit, 1)
    w, shift, size = w / unit, thresholds * steps / unit, size / unit
    moving, present = shift > 0, w != 0
    # What has no step stays as it is, and alone keeps its group from vanishing.
    stay = norms(w.masked_fill(moving, 0), groups)
    pull = (w / torch.where(moving, shift, 1)).masked_fill(~moving, 0)
    zero = (norms(pull, groups) <= 1) & (stay == 0)
    squares = w.square()

    def closer(r: torch.Tensor) -> torch.Tensor:
        reach = torch.where(present, r + shift, 1)
        phi = (squares / reach**2).sum(inside, keepdim=True)
        slope = (squares / reach**3).sum(inside, keepdim=True)
        grown = torch.maximum(r + (phi * phi.sqrt() - phi) / slope, r)
        settled = grown - r <= 2 * torch.finfo(w.dtype).eps * r
        return torch.where(zero | settled | ~grown.isfinite(), r, grown)

    r = torch.maximum(size - shift.amax(inside, keepdim=True), stay)
    r = iterated(closer, r, _NEWTON_STEPS)
    # 1 − shift/(r + shift) and not r/(r + shift), so that a step of 0 leaves w alone to the bit.
    u = (w - w * (shift / torch.where(present, r + shift, 1))) * unit
    return u.masked_fill(zero, 0)


class GroupLasso(Penalty):
    r"""The group lasso: λ·Σ √n·‖w_g‖₂ over the rows or columns of each weight, n their length.

    Its gradient is √n·w_g/‖w_g‖, 0 for a group that is zero. With ``delivery="proximal"`` groups
    become exactly zero: a row is an output unit (a convolution's filter), a column an input. The
    factor √n, the usual one, makes groups of different length comparable.

    The proximal operator is w_g·max(1 − step·λ·√n/‖w_g‖, 0); under optimizers with a step for each
    element, as Adam, it is found by ``shrink_groups``.

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

    def _root(self, w: torch.Tensor) -> float:
        root: float = length(w, self.groups) ** 0.5
        return root

    def value(self, w: torch.Tensor) -> torch.Tensor:
        """Return Σ √n·‖w_g‖."""
        sizes = norms(w, self.groups)
        return sizes.sum() * self._root(w)

    def gradient(self, w: torch.Tensor) -> torch.Tensor:
        """Return √n·w_g/‖w_g‖, 0 for a group that is zero."""
        sizes = norms(w, self.groups)
        return w * (self._root(w) / torch.where(sizes > 0, sizes, 1))

    def proximal(self, w: torch.Tensor, step: float | torch.Tensor) -> torch.Tensor:
        """Return the groups shrunk in norm, by step·λ·√n where all elements have one step."""
        strength = self.strength * self._root(w)
        if isinstance(step, torch.Tensor) and step.ndim > 0:
            return shrink_groups(w, strength, step, self.groups)
        return shrink_groups(w, step * strength, groups=self.groups)
