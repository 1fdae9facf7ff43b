"""λ of each penalty, read from the gradients that arrive in a backward pass.

A hook on a node looks at the gradient before the node works on it, and keeps a number or two. No
tensor of the pass is kept, changed or looked at twice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from regplug.backend.shards import local
from regplug.doctor.forms import SUMS, Form, Spot
from regplug.doctor.graph import Terms

__all__ = ["Reading", "Readings"]


@dataclass(frozen=True)
class Reading:
    """One penalty in one backward pass.

    Attributes:
        kind: what it is: a key of ``SUMS`` by its value, with ``_to_anchor`` where it is to one.
        leaves: the tensors that it penalizes.
        strength: λ as it arrives, None where one number does not say it.
        scale: what the loss that it was added to was multiplied by, None where it was to none.
    """

    kind: str
    leaves: tuple[torch.Tensor, ...]
    strength: float | None
    scale: float | None


class Readings:
    """Reads the penalties of one pass: made before it, asked after it."""

    def __init__(self, terms: Terms) -> None:
        self._forms = terms.forms
        self._levels: dict[tuple[Any, int], tuple[torch.Tensor, torch.Tensor, int]] = {}
        self._outs: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
        self._ratios: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
        self._handles: list[Any] = []
        wanted: dict[Any, set[int]] = {}
        scales: set[Any] = set()
        anchored: dict[Any, Form] = {}
        for form in terms.forms:
            spots = [(form.spot.node, form.spot.output)] if form.spot is not None else []
            spots += [form.join] if form.join is not None else []
            for node, output in spots:
                wanted.setdefault(node, set()).add(output)
            scales.update(form.scales)
            if form.anchored and form.spot is not None:
                anchored[form.spot.node] = form
        for node, outputs in wanted.items():
            self._handles.append(node.register_prehook(self._looker(node, outputs)))
        for node in scales | anchored.keys():
            self._handles.append(node.register_hook(self._after(node, anchored.get(node))))

    def _looker(self, node: Any, outputs: set[int]) -> Any:
        def look(gradients: Sequence[torch.Tensor | None]) -> None:
            with torch.no_grad():
                for output in outputs:
                    if output < len(gradients) and (g := gradients[output]) is not None:
                        g = local(g.detach())
                        dense = _dense(g)
                        self._levels[node, output] = dense.amin(), dense.amax(), g.numel()

        return look

    def _after(self, node: Any, anchored: Form | None) -> Any:
        def look(ins: Sequence[torch.Tensor | None], outs: Sequence[torch.Tensor | None]) -> None:
            with torch.no_grad():
                given = next((g for g in ins if g is not None), None)
                taken = next((g for g in outs if g is not None), None)
                if given is None or taken is None:
                    return
                given = local(given.detach())
                if anchored is not None:
                    signs = _signs(given, [leaf.variable for leaf in anchored.leaves])
                    self._outs[node] = given.double().square().sum(), signs
                else:
                    ratio = given / local(taken.detach())
                    ratio = ratio[torch.isfinite(ratio)]
                    if ratio.numel():
                        self._ratios[node] = ratio.amin(), ratio.amax()

        return look

    def results(self) -> list[Reading]:
        """Return what was read. To be asked once, after the pass."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        with torch.no_grad():
            found = [self._result(form) for form in self._forms]
        self._forms = []
        return [reading for reading in found if reading is not None]

    def _result(self, form: Form) -> Reading | None:
        leaves = tuple(leaf.variable for leaf in form.leaves)
        scale = None
        if form.join is not None:
            level = self._levels.get(form.join)
            if level is None or (level[2] != 1 and (form.rows or not _is_even(level))):
                return None  # added to activations, not to a loss, nor to those of samples
            scale = float(level[0]) * level[2]
        kind = SUMS[form.kind]
        strength = self._strength(form, leaves)
        if strength is None and kind != "other":
            kind = "other"
        if kind != "other" and form.anchored and not self._is_at_zero(form, leaves, strength):
            kind = "other" if kind == "norm" else f"{kind}_to_anchor"
        return Reading(kind, leaves, None if kind == "other" else strength, scale)

    def _strength(self, form: Form, leaves: Sequence[torch.Tensor]) -> float | None:
        spot = form.spot
        if spot is None or form.kind not in ("abs_sum", "square_sum", "norm"):
            return None
        level = self._level(spot)
        if level is None or (form.quad and level[1] != 1):
            return None
        times = self._times(form)
        if times is None:
            return None
        g, size = level[0], sum(leaf.numel() for leaf in leaves)
        if spot.how == "norm":
            own = abs(times) * _norm(leaves)
            # The gradient of the norm of c·w is c·w·c/‖c·w‖.
            slope = g * times * times / own if own else 0.0
            if form.kind == "abs_sum":
                return None
        elif form.kind == "abs_sum":
            return g * abs(times) / (size if spot.how == "mean" else 1)
        else:
            slope = 2 * g * times * times / (size if spot.how == "mean" else 1)
        if form.kind == "square_sum":
            return slope / 2
        together = tuple(leaf.variable for leaf in form.together) or leaves
        return slope * abs(_norm(together))

    def _level(self, spot: Spot) -> tuple[float, int] | None:
        """Return the gradient at a spot if it is the same for all elements, and how many."""
        level = self._levels.get((spot.node, spot.output))
        if level is None:
            return None
        if not _is_even(level):
            return None
        return (float(level[0]) + float(level[1])) / 2, level[2]

    def _times(self, form: Form) -> float | None:
        """Return what the weights were multiplied by, None if it is not one number."""
        times = 1.0
        for node in form.scales:
            if node not in self._ratios:
                return None
            low, high = (float(x) for x in self._ratios[node])
            if not math.isclose(low, high, rel_tol=1e-3):
                return None
            times *= (low + high) / 2
        return times

    def _is_at_zero(
        self, form: Form, leaves: Sequence[torch.Tensor], strength: float | None
    ) -> bool:
        """Whether what was subtracted from the weights were zeros."""
        if form.spot is None or form.spot.node not in self._outs or not strength:
            return False
        squares, signs = (float(x) for x in self._outs[form.spot.node])
        if form.kind == "abs_sum":
            return math.isclose(signs, 1.0)
        expected = (2 * strength * _norm(leaves)) ** 2
        return math.isclose(squares, expected, rel_tol=1e-4, abs_tol=1e-30)


_HALVES = (torch.float16, torch.bfloat16)


def _is_even(level: tuple[torch.Tensor, torch.Tensor, int]) -> bool:
    """Whether all elements of a gradient are one number."""
    tolerance = 1e-3 if level[0].dtype in _HALVES else 1e-6
    return math.isclose(float(level[0]), float(level[1]), rel_tol=tolerance)


def _dense(g: torch.Tensor) -> torch.Tensor:
    """Return the elements that differ in memory: the gradient of a sum has one for all."""
    if g.is_sparse:
        g = g.coalesce().values()
    for dim, stride in enumerate(g.stride()):
        if stride == 0 and g.shape[dim] > 1:
            g = g.narrow(dim, 0, 1)
    return g


def _signs(given: torch.Tensor, leaves: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the share of elements whose gradient is turned as the weights are, or all against."""
    own = [local(leaf.detach()).sign() for leaf in leaves]
    if len(own) == 1 and own[0].shape == given.shape:
        together = (own[0] * given.sign().to(own[0].dtype)).double()
        count = own[0].ne(0).sum().double()
        # Where a weight is 0 and the gradient is not, it is pulled elsewhere.
        return (together.sum().abs() - (own[0].eq(0) & given.ne(0)).sum()) / count
    total = sum(part.double().sum() for part in own)
    return (given.sign().double().sum() / total).abs()


def _norm(leaves: Sequence[torch.Tensor]) -> float:
    squares = 0.0
    for leaf in leaves:
        squares += float(local(leaf).detach().double().square().sum())
    return math.sqrt(squares)
