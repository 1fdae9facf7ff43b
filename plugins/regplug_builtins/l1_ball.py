"""The ℓ₁-ball constraint: Σ|w| of each weight is at most a bound."""

import torch

from regplug import Scheduled
from regplug.schedules import ScheduleLike
from regplug_builtins._constraint import Constraint
from regplug_builtins.l1 import soft_threshold

__all__ = ["L1Ball"]


class L1Ball(Constraint):
    r"""The ℓ₁-ball constraint: after each step, w ← the nearest u with Σ|u| ≤ limit.

    That is the lasso in its constrained form, for each parameter by itself. The nearest point is a
    soft threshold, sign(w)·max(|w| − θ, 0), with the one θ ≥ 0 that meets the bound, found by
    sorting; many elements become exactly 0.

    Args:
        limit: the bound, a finite number ≥ 0 or a schedule of the step count.
        where: the parameters, by default ``"weights"``.
        name: the key of its metrics.

    Raises:
        SpecError: ``limit`` is negative or not finite.
        SelectionError: ``where`` is no selection, or covers nothing.
        UnsupportedError: the optimizer is LBFGS, whose line search a constraint breaks.

    References:
        John Duchi, Shai Shalev-Shwartz, Yoram Singer, Tushar Chandra, "Efficient Projections onto
        the ℓ₁-Ball for Learning in High Dimensions", 2008, https://doi.org/10.1145/1390156.1390191.

    >>> L1Ball(2.0).constrained(torch.tensor([3.0, -2.0, 0.1]))
    tensor([ 1.5000, -0.5000,  0.0000])
    """

    projects = True

    limit = Scheduled(off=None)

    def __init__(
        self, limit: ScheduleLike, *, where: object = "weights", name: str | None = None
    ) -> None:
        super().__init__(where=where, name=name)
        self.limit = limit

    def constrained(self, w: torch.Tensor) -> torch.Tensor:
        """Return the projection onto the ball."""
        limit = self.limit
        sizes = w.abs().flatten()
        if limit == 0 or w.numel() == 0:
            return torch.zeros_like(w)
        fits = sizes.sum() <= limit
        if w.is_cpu and fits:  # to ask another device would be to wait for it
            return w
        falling = sizes.sort(descending=True).values
        # θ for each number k of elements that remain; the largest k that is consistent is true.
        excess = falling.cumsum(0) - limit
        count = torch.arange(1, falling.numel() + 1, dtype=w.dtype, device=w.device)
        remaining = (falling * count > excess).sum().clamp(min=1)
        threshold = excess.gather(0, remaining.view(1) - 1).squeeze(0) / remaining
        return torch.where(fits, w, soft_threshold(w, threshold))
