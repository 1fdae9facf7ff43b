"""How a decoupled decay follows the learning rate: four conventions, and what λ is in each."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from regplug import HALVES, Selective, SessionView
from regplug.errors import RegplugError, SpecError, StateError

__all__ = ["SCALES", "Scale", "is_elsewhere", "rounds_away"]

SCALES = ("lr", "schedule", "none", "lr_squared")

ByGroup: TypeAlias = Mapping[int, Sequence[torch.Tensor]]

# Where an optimizer or a scheduler of torch's keeps what an lr is measured by, the best first.
_KEPT = {"schedule": ("initial_lr",), "lr_squared": ("max_lr", "initial_lr")}
_SAID = {"schedule": "lr₀", "lr_squared": "lr_max"}


class Scale:
    """What λ is multiplied by at each step, for each parameter group.

    ``"lr"``: lr. ``"schedule"``: lr/lr₀. ``"none"``: 1. ``"lr_squared"``: lr²/lr_max.

    Args:
        mode: one of :data:`SCALES`.
        reference: lr₀ or lr_max of all groups; None to take each group's own, once: its
            ``initial_lr`` (for lr_max its ``max_lr``, if it has one), which schedulers of torch's
            set, else its lr when it is first seen.

    Attributes:
        known: the reference of each group. A plugin keeps it as an attribute of its own, so that
            it is put back with all else where loading a state fails.

    Raises:
        SpecError: ``mode`` is none of these, or ``reference`` is no learning rate, or of no use.
    """

    def __init__(self, mode: str, reference: float | None = None) -> None:
        if mode not in SCALES:
            raise SpecError(f"scale must be one of {', '.join(SCALES)}, got {mode!r}")
        if reference is not None:
            if mode not in _KEPT:
                raise SpecError(
                    f"reference_lr is what scale='schedule' and scale='lr_squared' measure the lr "
                    f"by, and scale is {mode!r}: leave it out"
                )
            plain = isinstance(reference, int | float) and not isinstance(reference, bool)
            if not plain or not 0 < reference < float("inf"):
                raise SpecError(f"reference_lr must be finite and above 0, got {reference!r}")
        self.mode, self.reference = mode, reference
        self.known: dict[int, float] = {}
        self._warned = self._told = False

    def begin(self, session: SessionView) -> None:
        """Take the references of all groups that have an lr by now."""
        self.known.clear()
        self._warned = self._told = False
        self._see(session)

    def _see(self, session: SessionView) -> None:
        if self.mode in _KEPT:
            for index, group in enumerate(session.groups):
                if index not in self.known and group.get("lr") is not None:
                    self.known[index] = self._reference(group, index)

    def _reference(self, group: Mapping[str, Any], index: int) -> float:
        kept = (group[key] for key in _KEPT[self.mode] if group.get(key) is not None)
        found = self.reference if self.reference is not None else float(next(kept, group["lr"]))
        if found == 0:
            raise SpecError(
                f"scale={self.mode!r} divides by {_SAID[self.mode]}, and group {index} has lr 0 "
                "now and no other: say reference_lr=, the lr that λ is meant for"
            )
        return found

    def of(self, session: SessionView, index: int, strength: float) -> Any:
        """Return the share that a group's weights are to be decayed by, a number or 0-d tensor."""
        if self.mode == "none":
            self._warn_of_all(strength)
            return strength
        lr = session.learning_rate(index)
        if self.mode == "lr":
            return lr * strength
        if index not in self.known:
            self._see(session)
        reference = self.known[index]
        self._warn_of_more(lr, reference, index)
        decay = (lr / reference if self.mode == "schedule" else lr**2 / reference) * strength
        self._warn_of_all(decay)
        return decay

    def _warn_of_all(self, decay: Any) -> None:
        if not self._told and isinstance(decay, float) and decay > 1:
            self._told = True
            warnings.warn(
                f"scale={self.mode!r}: the decay takes {decay:g} times each weight in a step, "
                "which turns its sign: by this scale λ is the share that is lost, well below 1",
                stacklevel=4,
            )

    def _warn_of_more(self, lr: Any, reference: float, index: int) -> None:
        if self._warned or self.reference is not None or is_elsewhere(lr):
            return
        if float(lr) > reference * (1 + 1e-6):
            self._warned = True
            warnings.warn(
                f"scale={self.mode!r}: the lr of group {index} is {float(lr):g} now, above the "
                f"{_SAID[self.mode]} = {reference:g} that it had when the plugin was attached, so "
                "that λ acts more strongly than it says: say reference_lr=, the peak of the lr",
                stacklevel=3,
            )

    # --- saved, and shown -----------------------------------------------------------------

    def load(self, state: Mapping[str, Any], name: str) -> None:
        """Go on from a saved state.

        Raises:
            StateError: it is none.
        """
        saved = state.get("reference_lr")
        if saved is None or self.mode not in _KEPT or self.reference is not None:
            return
        if not isinstance(saved, Mapping) or not all(
            isinstance(index, int) and isinstance(lr, float) and lr > 0
            for index, lr in saved.items()
        ):
            raise StateError(f"{name}: the saved reference_lr is no number for each group")
        self.known.clear()
        self.known.update(saved)

    def said_of(self, plugin: Selective, session: SessionView, by_group: ByGroup) -> list[str]:
        """Return what each λ of a plugin comes to, in the groups that have it."""
        if not plugin.mappings:
            return self.said(session, list(by_group), plugin.strengths()["strength"])
        strengths = plugin.strengths_by_part(session)
        found: list[str] = []
        for part in range(len(strengths.parts.settings)):
            here = [i for i, ws in by_group.items() if part in map(strengths.parts.number, ws)]
            with strengths.at(part):
                found += self.said(session, here, plugin.strengths()["strength"])
        return list(dict.fromkeys(found))

    def said(self, session: SessionView, indices: Sequence[int], strength: float) -> list[str]:
        """Return what λ comes to in the other conventions, at the lr of each group now."""
        lines: dict[str, list[int]] = {}
        for index in indices:
            try:
                self._see(session)
                decay, lr = float(self.of(session, index, strength)), session.learning_rate(index)
            except RegplugError:  # of a loop by hand, the lr is known in its steps alone
                continue
            group = session.groups[index]
            lr = float(lr)
            measured = {
                mode: self.known[index]
                if mode == self.mode
                else float(next((group[k] for k in _KEPT[mode] if group.get(k) is not None), lr))
                for mode in _KEPT
            }
            if lr == 0 or 0 in measured.values():
                continue
            same = {
                "lr": decay / lr,
                "schedule": decay * measured["schedule"] / lr,
                "none": decay,
                "lr_squared": decay * measured["lr_squared"] / lr**2,
            }
            del same[self.mode]
            others = ", ".join(f"{value:.3g} by {mode!r}" for mode, value in same.items())
            line = f"λ = {strength:g} by scale={self.mode!r} is now what would be {others}"
            lines.setdefault(line, []).append(index)
        if len(lines) < 2:
            return list(lines)
        return [f"{line} (group {', '.join(map(str, of))})" for line, of in lines.items()]


def is_elsewhere(number: Any) -> bool:
    """Whether to ask for a number would be to wait for a device."""
    return isinstance(number, torch.Tensor) and not number.is_cpu


def rounds_away(name: str, weights: Sequence[torch.Tensor], decay: Any) -> bool:
    """Return whether a decay changes nothing in weights of half precision, and warn of it."""
    if is_elsewhere(decay):
        return False
    decay = float(decay)
    for dtype in {w.dtype for w in weights} & HALVES:
        # Neighbours of w are at least eps/2·|w| apart: what is below half of that is lost.
        if 0 < decay < torch.finfo(dtype).eps / 4:
            warnings.warn(
                f"{name}: lr·λ = {decay:.1g} rounds away in {dtype} weights and "
                "changes nothing: keep the weights in float32 (autocast does)",
                stacklevel=3,
            )
            return True
    return False
