"""A penalty whose strengths are by pattern, delivered part by part: :class:`Parted`."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from regplug.backend.groups import Group
from regplug.delivery import by_parts
from regplug.delivery.by_parts import Shares
from regplug.kernels.kernel import Kernel
from regplug.kernels.pieces import Layouts
from regplug.selection.coverage import Coverage
from regplug.selection.parts import Strengths

if TYPE_CHECKING:
    from regplug.backend.update_rules import UpdateRule

__all__ = ["Parted"]


class Parted:
    """A penalty and its parts.

    Args:
        kernel: of the formula.
        strengths: of the parts.
        now: returns λ as it is read in the part that is worked on, 0 where it has nothing to do.
    """

    def __init__(self, kernel: Kernel, strengths: Strengths, now: Callable[[], float]) -> None:
        self.kernel, self.strengths, self._now = kernel, strengths, now
        self._kernels: dict[int, Kernel] = {}  # of each part
        self._known: tuple[dict[int, float], Shares] | None = None

    def __reduce__(self) -> Any:
        return type(None), ()  # of no use to a copy of the plugin, which makes its own

    def factors(self, scale: float = 1.0) -> dict[int, float]:
        """Return λ·scale in each part that has something to do now."""
        found = {}
        for part in range(len(self.strengths.parts.settings)):
            with self.strengths.at(part):
                if factor := self._now():
                    found[part] = factor * scale
        return found

    def shares(self, coverage: Coverage) -> Shares:
        """Return the share of each weight in an objective, but for the sign of its group."""
        factors, number = self.factors(), self.strengths.parts.number
        if self._known is None or self._known[0] != factors:
            for part in factors.keys() - self._kernels.keys():
                self._kernels[part] = by_parts.kernel_of_part(self.kernel, self.strengths, part)
            parts = ((entry.parameter, number(entry.parameter)) for entry in coverage)
            shares: Shares = {}
            shares.update((w, (self._kernels[p], factors[p])) for w, p in parts if p in factors)
            self._known = factors, shares
        return self._known[1]

    def shares_in_use(self, coverage: Coverage, valued: Coverage) -> Shares:
        """Return those of what the model computes with, where that is not what it trains."""
        of = self.shares(coverage)
        return {e.parameter: of[e.original] for e in valued if e.original in of}

    def hands_over(self, weights: Sequence[torch.Tensor], hand: Callable[[], bool]) -> bool:
        """Return whether nothing is to be done to weights, or ``hand()`` says so of their part."""
        part, *others = self.strengths.parts.rows(weights)
        if others:
            return False
        with self.strengths.at(part):
            return not self._now() or hand()

    def add_gradients(
        self,
        gradients: Sequence[torch.Tensor],
        weights: Sequence[torch.Tensor],
        scale: float,
        layouts: Layouts,
    ) -> None:
        """Add λ·scale times the gradient to each of ``gradients``, of one dtype and device."""
        factors = self.factors(scale)
        by_parts.add_gradients(self.kernel, self.strengths, gradients, weights, factors, layouts)

    def apply_proximal(
        self,
        rule: "UpdateRule",
        group: Group,
        states: Mapping[torch.Tensor, Mapping[str, Any]],
        weights: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor],
        layouts: Layouts,
    ) -> None:
        """Replace the weights of a group by their proximal points."""
        by_parts.apply_proximal(
            self.kernel,
            self.strengths,
            self.factors().keys(),
            rule,
            group,
            states,
            weights,
            gradients,
            layouts,
        )
