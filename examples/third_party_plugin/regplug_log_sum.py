"""The log-sum penalty, λ·Σ log(1 + |w|/ε): nearer to counting weights than the lasso is."""

import math

import torch

import regplug
from regplug.errors import SpecError
from regplug.schedules import ScheduleLike

__all__ = ["LogSum"]


class LogSum(regplug.Penalty):
    r"""The log-sum penalty: λ·Σ log(1 + |w|/ε).

    Its gradient is λ·sign(w)/(ε + |w|), 0 at w = 0: small weights are pulled to 0 hard, large ones
    hardly at all, where the lasso pulls all of them alike. It is not convex.

    Args:
        strength: λ, a finite number ≥ 0 or a schedule of the step count.
        epsilon: ε > 0, the size of a weight that counts as small.
        where: the parameters, by default ``"weights"``.
        delivery: ``"auto"``, ``"loss"`` or ``"step"``, see :class:`regplug.Penalty`.
        name: the key of its state and metrics.

    Raises:
        SpecError: ``strength`` is negative or not finite, ``epsilon`` is not positive and finite,
            or ``delivery`` is none of these.
        SelectionError: ``where`` is no selection.

    References:
        Emmanuel J. Candès, Michael B. Wakin, Stephen P. Boyd, "Enhancing Sparsity by Reweighted ℓ₁
        Minimization", 2008, https://doi.org/10.1007/s00041-008-9045-x.

    >>> round(LogSum(1.0, epsilon=1.0).value(torch.tensor([1.0, 0.0])).item(), 4)   # log 2
    0.6931
    """

    separable = True

    def __init__(
        self,
        strength: ScheduleLike,
        *,
        epsilon: float = 0.1,
        where: str | list[str] = "weights",
        delivery: str = "auto",
        name: str | None = None,
    ) -> None:
        super().__init__(strength, where=where, delivery=delivery, name=name)
        if not (epsilon > 0 and math.isfinite(epsilon)):
            raise SpecError(f"epsilon must be positive and finite, got {epsilon!r}")
        self.epsilon = float(epsilon)

    def value(self, w: torch.Tensor) -> torch.Tensor:
        """Return Σ log(1 + |w|/ε)."""
        return torch.log1p(w.abs() / self.epsilon).sum()

    def gradient(self, w: torch.Tensor) -> torch.Tensor:
        """Return sign(w)/(ε + |w|)."""
        return w.sign() / (w.abs() + self.epsilon)
