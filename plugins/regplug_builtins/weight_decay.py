"""Decoupled weight decay, w ← (1 − lr·λ)·w."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from regplug import Coverage, Plugin, Scheduled, Selection, Session, hookimpl, local
from regplug.errors import SpecError
from regplug.schedules import ScheduleLike

__all__ = ["WeightDecay"]

EXISTING = ("error", "replace", "add")
_HALVES = {torch.float16, torch.bfloat16}


class WeightDecay(Plugin):
    r"""Decoupled weight decay: w ← (1 − lr·λ)·w before the optimizer's update.

    This is AdamW's meaning, and bit-equal to AdamW when attached to Adam: the decay is scaled by
    the parameter group's learning rate as it is at that step, and does not pass through momentum
    or second moments. For the coupled meaning, an addition to the gradient, use ``l2``:
    ``l2(λ)`` equals ``weight_decay=2λ`` of SGD.

    Args:
        strength: λ, a finite number ≥ 0 or a schedule of the step count; AdamW's default is 0.01.
        where: the parameters, by default ``"weights"``, which spares biases and norms.
        existing: what to do where the optimizer itself decays a covered parameter (AdamW does so
            by 0.01 unless told otherwise): ``"error"``; ``"replace"``, which sets the
            ``weight_decay`` of those whole parameter groups to 0 until detached; or ``"add"``.
        cautious: decay only the elements that the optimizer's own update moves towards 0 or not at
            all: with the update u of this step, w ← w − u − lr·λ·w·[u·w ≥ 0], Chen et al.'s
            cautious weight decay. It holds a copy of the covered weights during the step.
        name: the key of its metrics.

    Raises:
        SpecError: ``strength`` is negative or not finite, ``existing`` is none of these, or the
            optimizer decays already.
        SelectionError: ``where`` is no selection, or covers nothing.
        RegplugError: the learning rate of a hand-written update is not known.

    References:
        Ilya Loshchilov, Frank Hutter, "Decoupled Weight Decay Regularization", 2019,
        https://arxiv.org/abs/1711.05101.
        Lizhang Chen et al., "Cautious Weight Decay", 2025, https://arxiv.org/abs/2510.12402.

    >>> import regplug, torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(model.weight, 1.0)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    >>> session = regplug.attach(model, optimizer, [WeightDecay(0.1)])
    >>> model(torch.zeros(1, 1)).sum().backward()
    >>> optimizer.step()
    >>> round(model.weight.item(), 6)                       # 1 − 0.5·0.1
    0.95
    """

    strength = Scheduled()

    def __init__(
        self,
        strength: ScheduleLike,
        *,
        where: object = "weights",
        existing: str = "error",
        cautious: bool = False,
        name: str | None = None,
    ) -> None:
        if existing not in EXISTING:
            raise SpecError(f"existing must be one of {', '.join(EXISTING)}, got {existing!r}")
        self.strength = strength
        self.selection = Selection(where)  # type: ignore[arg-type]
        self.existing = existing
        self.cautious = self.order_matters = bool(cautious)
        self.name = name
        self._before: list[tuple[list[torch.Tensor], list[torch.Tensor], Any]] = []
        self._originals: dict[int, Any] = {}
        self._checked: Coverage | None = None
        self._handed: list[int] = []
        self._lent: list[int] = []
        self._load_hook: Any = None
        self._coarse = False

    @hookimpl
    def on_attach(self, session: Session) -> None:
        """Check what the optimizer decays by itself, and take it over if so told."""
        self._take_over(session)
        if session.optimizer is not None:
            # Loading an optimizer's state replaces its groups, and brings the old values back.
            self._load_hook = session.optimizer.register_load_state_dict_post_hook(
                lambda optimizer: self._take_over(session)
            )

    def _take_over(self, session: Session) -> None:
        self._checked = coverage = session.coverage(self.selection)
        self._handed = []
        self._coarse = any(entry.parameter.dtype in _HALVES for entry in coverage)
        for index in coverage.by_group:
            group = session.groups[index]
            if self.existing != "add" and self._can_hand_over(session, index):
                self._handed.append(index)
            if not group.get("weight_decay") or self.existing == "add":
                continue
            if self.existing == "error":
                raise SpecError(
                    f"{self.name}: {type(session.optimizer).__name__} decays the parameters of "
                    f"group {index} already, by weight_decay={group['weight_decay']:g}: make it "
                    "with weight_decay=0, or say existing='replace' (this plugin takes over until "
                    "it is detached) or existing='add' (both act)"
                )
            self._originals[index] = group["weight_decay"]
            group["weight_decay"] = 0.0

    def _can_hand_over(self, session: Session, index: int) -> bool:
        """Whether the optimizer's own update would do just the same to this group, at no cost."""
        group, coverage = session.groups[index], session.coverage(self.selection)
        exact = type(session.optimizer) is torch.optim.AdamW or (
            type(session.optimizer) in (torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam)
            and group.get("decoupled_weight_decay", False)
        )
        whole = len(coverage.by_group[index]) == len(group["params"])
        alone = not any(
            hasattr(getattr(other, "before_step", None), "regplug_impl")
            for other in session.plugins
            if other is not self
        )
        plain = exact and whole and alone and not self.cautious
        return plain and all(p.requires_grad for p in group["params"])

    @hookimpl
    def after_step(self, session: Session) -> None:
        """Take back what the optimizer was handed for this step; decay cautiously, if so told."""
        self._take_back(session)
        before, self._before = self._before, []
        for weights, earlier, decay in before:
            for w, old in zip(weights, earlier, strict=True):
                # The update was old − w, so far: of the same sign as old if it shrinks.
                shrinks = torch.sign(old - w) * torch.sign(old) >= 0
                w.sub_(torch.where(shrinks, old * decay, 0))

    def _take_back(self, session: Session) -> None:
        """Set back the groups: between steps they, and what is saved of them, are the user's."""
        for index in self._lent:
            session.groups[index]["weight_decay"] = 0.0
        self._lent = []

    @hookimpl
    def on_detach(self, session: Session) -> None:
        """Give the optimizer its own weight_decay back."""
        if self._load_hook is not None:
            self._load_hook.remove()
            self._load_hook = None
        self._take_back(session)
        self._handed, self._before = [], []
        for index, original in self._originals.items():
            session.groups[index]["weight_decay"] = original
        self._originals = {}
        self._checked = None

    @hookimpl
    def before_step(self, session: Session) -> None:
        """Decay the weights that take part in this step."""
        self._take_back(session)  # the optimizer's update may have raised last time
        self._before = []
        if session.coverage(self.selection) is not self._checked:
            self._take_over(session)
        strength = self.strength
        if strength == 0:
            return
        for index, weights, _ in session.updates(self.selection):
            lr = session.learning_rate(index)
            if self._coarse:
                self._tell_rounding(weights, float(lr) * strength)
            group = session.groups[index]
            # Another session's decay may have been handed over to the same group.
            free = index in self._handed and not group["weight_decay"]
            if free and len(weights) == _with_gradient(group):
                group["weight_decay"] = strength
                self._lent.append(index)
                continue
            parts = [local(w) for w in weights]
            if self.cautious:
                self._before.append((parts, [w.clone() for w in parts], lr * strength))
                continue
            # The expression of torch's AdamW, to the bit; a tensor lr stays on its device.
            torch._foreach_mul_(parts, 1 - lr * strength)

    def _tell_rounding(self, weights: Sequence[torch.Tensor], decay: float) -> None:
        for dtype in {w.dtype for w in weights} & _HALVES:
            # Neighbours of w are at least eps/2·|w| apart: what is below half of that is lost.
            if 0 < decay < torch.finfo(dtype).eps / 4:
                warnings.warn(
                    f"{self.name}: lr·λ = {decay:.1g} rounds away in {dtype} weights and "
                    "changes nothing: keep the weights in float32 (autocast does)",
                    stacklevel=2,
                )
                self._coarse = False  # told once

    @hookimpl
    def on_metrics(self, session: Session) -> Mapping[str, Any]:
        """Return the strength."""
        return {"strength": self.strength}

    def covers(self, session: Session) -> tuple[int, int]:
        """Return how many tensors and weights are covered."""
        coverage = session.coverage(self.selection)
        return len(coverage.trainable), coverage.weights

    def acts(self, session: Session) -> str:
        """Return when it acts, and on what terms."""
        if self._handed and len(self._handed) == len(session.coverage(self.selection).by_group):
            return f"the update of {type(session.optimizer).__name__} itself"
        took = {f"{original:g}" for original in self._originals.values()}
        when = "after_step, cautiously" if self.cautious else "before_step"
        return when + (f", replacing {', '.join(sorted(took))}" if took else "")

    def agreement(self, session: Session) -> Mapping[str, Any]:
        """Return the settings, and what they come to in this model."""
        covered = [entry.name for entry in session.coverage(self.selection)]
        return {**super().agreement(session), "covers": covered}


def _with_gradient(group: Mapping[str, Any]) -> int:
    return sum(p.grad is not None for p in group["params"])
