"""Hard thresholding: only the largest weights remain, the others are exactly zero."""

import torch

from regplug import Scheduled
from regplug.schedules import ScheduleLike
from regplug_builtins._constraint import Constraint

__all__ = ["HardThreshold"]


class HardThreshold(Constraint):
    r"""Iterative hard thresholding: after each step, all but the largest weights are set to 0.

    Of each parameter's n elements the ⌈keep·n⌉ of largest magnitude stay as they are: the nearest
    point with that many nonzeros. Where elements are equally large, the earlier ones stay. Zeros
    still get gradients and may come back. With a schedule of ``keep`` this is gradual magnitude
    pruning, for example ``hard_threshold(linear(1, 0.1, steps=1000))``.

    Args:
        keep: the share that stays, within [0, 1], or a schedule of it over the step count.
        where: the parameters, by default ``"weights"``.
        name: the key of its metrics.

    Raises:
        SpecError: ``keep`` leaves [0, 1].
        SelectionError: ``where`` is no selection, or covers nothing.
        UnsupportedError: the optimizer is LBFGS, whose line search a constraint breaks.

    References:
        Thomas Blumensath, Mike E. Davies, "Iterative Hard Thresholding for Compressed Sensing",
        2009, https://doi.org/10.1016/j.acha.2009.04.002.
        Michael Zhu, Suyog Gupta, "To Prune, or Not to Prune: Exploring the Efficacy of Pruning for
        Model Compression", 2017, https://arxiv.org/abs/1710.01878.

    >>> HardThreshold(0.5).constrained(torch.tensor([3.0, -2.0, 0.1, -4.0]))
    tensor([ 3.,  0.,  0., -4.])
    """

    projects = True

    keep = Scheduled(low=0.0, high=1.0, off=1.0)

    def __init__(
        self, keep: ScheduleLike, *, where: object = "weights", name: str | None = None
    ) -> None:
        super().__init__(where=where, name=name)
        self.keep = keep

    def constrained(self, w: torch.Tensor) -> torch.Tensor:
        """Return ``w`` with all but its largest elements set to 0."""
        # Less a rounding error: 0.1·10 of a share that was computed is 1, not a little more.
        stay = -int(-(self.keep * w.numel() - 1e-6) // 1)
        kept = torch.zeros(w.numel(), dtype=torch.bool, device=w.device)
        order = w.abs().flatten().sort(descending=True, stable=True).indices
        kept.scatter_(0, order[: max(stay, 0)], True)
        return torch.where(kept.view(w.shape), w, 0)
