"""The ridge penalty, λ·Σw²."""

import torch

from regplug_builtins._coupled import Coupled

__all__ = ["L2"]


class L2(Coupled):
    r"""The ridge penalty: λ·Σw², with no ½.

    Its gradient is 2λ·w, so ``l2(λ)`` under SGD equals SGD's own ``weight_decay=2λ``; Keras' and
    scikit-learn's definitions have no ½ either. Its proximal operator is w/(1 + 2·step·λ).

    At the step, a whole parameter group of one of torch's optimizers whose ``weight_decay`` is an
    addition to the gradient is left to that: it is raised by 2λ for the time of the update, at no
    cost, and ``.grad`` does not show the penalty then. ``attach(…, handover=False)`` has it added
    to ``.grad``, as it is wherever others may look at the gradient.

    Args:
        strength: λ, a finite number ≥ 0 or a schedule of the step count.
        where: the parameters, by default ``"weights"``.
        delivery: ``"auto"``, ``"loss"``, ``"step"`` or ``"proximal"``; see
            :class:`regplug.Penalty`.
        name: the key of its state and metrics.

    Raises:
        SpecError: ``strength`` is negative or not finite, or ``delivery`` is none of these.
        SelectionError: ``where`` is no selection.

    References:
        Arthur E. Hoerl, Robert W. Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal
        Problems", 1970, https://doi.org/10.1080/00401706.1970.10488634.

    >>> L2(0.5).value(torch.tensor([1.0, -2.0]))
    tensor(5.)
    """

    separable = True
    composition = "scale"
    multiple = 2.0

    def value(self, w: torch.Tensor) -> torch.Tensor:
        """Return Σw²."""
        return w.square().sum()

    def gradient(self, w: torch.Tensor) -> torch.Tensor:
        """Return 2w."""
        return 2 * w

    def proximal(self, w: torch.Tensor, step: float | torch.Tensor) -> torch.Tensor:
        """Return w/(1 + 2·step·λ)."""
        return w / (1 + 2 * self.strength * step)

    def gradients(self, weights: list[torch.Tensor], factor: float) -> list[torch.Tensor]:
        """Return ``2·factor·w`` for each weight."""
        return list(torch._foreach_mul(weights, 2 * factor))

    def add_gradients(
        self, gradients: list[torch.Tensor], weights: list[torch.Tensor], factor: float
    ) -> None:
        """Add ``2·factor·w`` to each gradient."""
        torch._foreach_add_(gradients, weights, alpha=2 * factor)
