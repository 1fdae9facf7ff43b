"""The elastic net, λ₁·Σ|w| + λ₂·Σw²."""

from collections.abc import Mapping

import torch

from regplug import Penalty, Scheduled
from regplug.schedules import ScheduleLike
from regplug_builtins.l1 import signs, soft_threshold

__all__ = ["ElasticNet"]

# λ₁·(sign(w) + r·w) with r = 2λ₂/λ₁ is exact to rounding, as long as r·w stays in range.
FAR = 1e12


class ElasticNet(Penalty):
    r"""The elastic net: λ₁·Σ|w| + λ₂·Σw², each strength a number or a schedule.

    Its gradient is λ₁·sign(w) + 2λ₂·w; its proximal operator is the soft threshold of λ₁ divided
    by 1 + 2·step·λ₂. With a loss of ½·MSE, scikit-learn's ``ElasticNet(alpha, l1_ratio)`` has
    λ₁ = alpha·l1_ratio and λ₂ = ½·alpha·(1 − l1_ratio).

    Args:
        l1: λ₁, a finite number ≥ 0 or a schedule of the step count.
        l2: λ₂, likewise.
        where: the parameters, by default ``"weights"``.
        delivery: ``"auto"``, ``"loss"``, ``"step"`` or ``"proximal"``; see
            :class:`regplug.Penalty`.
        name: the key of its state and metrics (``/l1_strength`` and ``/l2_strength`` among them).

    Raises:
        SpecError: a strength is negative or not finite, or ``delivery`` is none of these.
        SelectionError: ``where`` is no selection.

    References:
        Hui Zou, Trevor Hastie, "Regularization and Variable Selection via the Elastic Net", 2005,
        https://doi.org/10.1111/j.1467-9868.2005.00503.x (their naive elastic net).

    >>> ElasticNet(1.0, 0.5).value(torch.tensor([1.0, -2.0]))
    tensor(5.5000)
    """

    separable = True
    composition = "threshold and scale"
    l1_strength = Scheduled()
    l2_strength = Scheduled()

    def __init__(
        self,
        l1: ScheduleLike,
        l2: ScheduleLike,
        *,
        where: object = "weights",
        delivery: str = "auto",
        name: str | None = None,
    ) -> None:
        # The strengths are inside the value; the factor in front of it stays 1.
        super().__init__(1.0, where=where, delivery=delivery, name=name)  # type: ignore[arg-type]
        self.l1_strength = l1
        self.l2_strength = l2

    @property
    def active(self) -> bool:
        """Whether either strength is above 0 now."""
        return self.l1_strength != 0 or self.l2_strength != 0

    def strengths(self) -> Mapping[str, float]:
        """Return both strengths now."""
        return {"l1_strength": self.l1_strength, "l2_strength": self.l2_strength}

    def value(self, w: torch.Tensor) -> torch.Tensor:
        """Return λ₁·Σ|w| + λ₂·Σw²."""
        l1: torch.Tensor = w.abs().sum()
        return self.l1_strength * l1 + self.l2_strength * w.square().sum()

    def gradient(self, w: torch.Tensor) -> torch.Tensor:
        """Return λ₁·sign(w) + 2λ₂·w."""
        return self.l1_strength * torch.sign(w) + (2 * self.l2_strength) * w

    def proximal(self, w: torch.Tensor, step: float | torch.Tensor) -> torch.Tensor:
        """Return the soft threshold of step·λ₁, divided by 1 + 2·step·λ₂."""
        return soft_threshold(w, step * self.l1_strength) / (1 + 2 * self.l2_strength * step)

    def gradients(self, weights: list[torch.Tensor], factor: float) -> list[torch.Tensor]:
        """Return ``factor·(λ₁·sign(w) + 2λ₂·w)`` for each weight."""
        found = torch._foreach_mul(weights, factor * 2 * self.l2_strength)
        torch._foreach_add_(found, torch._foreach_sign(weights), alpha=factor * self.l1_strength)
        return list(found)

    def add_gradients(
        self, gradients: list[torch.Tensor], weights: list[torch.Tensor], factor: float
    ) -> None:
        """Add ``factor·(λ₁·sign(w) + 2λ₂·w)`` to each gradient."""
        l1, l2 = self.l1_strength, 2 * self.l2_strength
        if l2 > FAR * l1:
            torch._foreach_add_(gradients, weights, alpha=factor * l2)
            l2 = 0.0
        if l1:
            # Both in one addition, so that the gradients go through memory once.
            found = signs(weights)
            if l2:
                torch._foreach_add_(found, weights, alpha=l2 / l1)
            torch._foreach_add_(gradients, found, alpha=factor * l1)
