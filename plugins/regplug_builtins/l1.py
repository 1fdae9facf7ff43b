"""The lasso penalty, λ·Σ|w|."""

import torch

from regplug import HALVES, Penalty, scratch, widened
from regplug_builtins import _private

__all__ = ["L1", "signs", "soft_threshold", "soft_threshold_"]


def soft_threshold(w: torch.Tensor, threshold: float | torch.Tensor) -> torch.Tensor:
    """Return ``sign(w)·max(|w| − threshold, 0)``, shaped like ``w``.

    >>> soft_threshold(torch.tensor([-3.0, 0.5, 2.0]), 1.0)
    tensor([-2.,  0.,  1.])
    """
    if isinstance(threshold, torch.Tensor):
        return w - w.clamp(-threshold, threshold)
    return torch.nn.functional.softshrink(w, threshold)


def soft_threshold_(
    weights: list[torch.Tensor], step: float | torch.Tensor, strength: float
) -> None:
    """Replace each weight by ``soft_threshold(w, step·strength)``, rounded once in its own dtype.

    A tensor ``step`` is used up.

    >>> w = torch.tensor([-3.0, 0.5, 2.0])
    >>> soft_threshold_([w], torch.tensor([2.0, 2.0, 4.0]), 0.5)
    >>> w
    tensor([-2.,  0.,  0.])
    """
    for w in weights:
        if w.dtype in HALVES:
            w.copy_(soft_threshold(widened(w), step * strength))
        elif isinstance(step, torch.Tensor):
            # The point of [w − t, w + t] that is nearest to 0: of one form for either sign of w.
            low = torch.sub(w, step, alpha=strength, out=scratch(w, "in a formula"))
            high = torch.add(w, step, alpha=strength, out=step if step.ndim else None)
            torch.clamp(w.new_zeros(()), low, high, out=w)
        else:
            _private.soft_threshold_(w, step * strength)


def signs(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return ``sign(w)`` for each weight, to be used at once: it may lie in scratch memory.

    >>> signs([torch.tensor([-3.0, 0.0, 2.0])])
    [tensor([-1.,  0.,  1.])]
    """
    if len(weights) == 1:  # as large ones come
        return [torch.sign(w.detach(), out=scratch(w, "in a formula")) for w in weights]
    return list(torch._foreach_sign(weights))


class L1(Penalty):
    r"""The lasso penalty: λ·Σ|w|.

    Its gradient is λ·sign(w), 0 at w = 0; its proximal operator is the soft threshold
    sign(w)·max(|w| − step·λ, 0). By gradients weights come near 0 and never rest there: for exact
    zeros use ``delivery="proximal"``.

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
        Robert Tibshirani, "Regression Shrinkage and Selection via the Lasso", 1996,
        https://doi.org/10.1111/j.2517-6161.1996.tb02080.x.
        Neal Parikh, Stephen Boyd, "Proximal Algorithms", 2014, section 6.5.2,
        https://web.stanford.edu/~boyd/papers/prox_algs.html.

    >>> L1(0.5).value(torch.tensor([1.0, -2.0]))
    tensor(3.)
    >>> L1(0.5).proximal(torch.tensor([1.0, -0.2]), step=1.0)
    tensor([0.5000, -0.0000])
    """

    separable = True
    composition = "threshold"

    def value(self, w: torch.Tensor) -> torch.Tensor:
        """Return Σ|w|."""
        norm: torch.Tensor = w.abs().sum()
        return norm

    def gradient(self, w: torch.Tensor) -> torch.Tensor:
        """Return sign(w)."""
        return torch.sign(w)

    def proximal(self, w: torch.Tensor, step: float | torch.Tensor) -> torch.Tensor:
        """Return sign(w)·max(|w| − step·λ, 0)."""
        return soft_threshold(w, step * self.strength)

    def gradients(self, weights: list[torch.Tensor], factor: float) -> list[torch.Tensor]:
        """Return ``factor·sign(w)`` for each weight."""
        found = torch._foreach_sign(weights)
        torch._foreach_mul_(found, factor)
        return list(found)

    def add_gradients(
        self, gradients: list[torch.Tensor], weights: list[torch.Tensor], factor: float
    ) -> None:
        """Add ``factor·sign(w)`` to each gradient."""
        torch._foreach_add_(gradients, signs(weights), alpha=factor)

    def proximal_(self, weights: list[torch.Tensor], step: float | torch.Tensor) -> None:
        """Replace each weight by its proximal point."""
        soft_threshold_(weights, step, self.strength)
