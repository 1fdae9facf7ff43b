"""Decoupled weight decay, w ← (1 − lr·λ)·w, in each of its conventions."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from regplug import (
    HALVES,
    Coverage,
    Elementwise,
    Scheduled,
    Selective,
    SessionView,
    called_by_a_graph,
    hookimpl,
    lent,
    local,
    sessions,
)
from regplug.schedules import ScheduleLike, constant
from regplug_builtins._existing import Existing
from regplug_builtins._left import hears, taking
from regplug_builtins._scale import Scale, is_elsewhere, rounds_away

__all__ = ["WeightDecay"]

# Those that decay as AdamW does if they are asked to.
_DECOUPLED = (torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam)


class WeightDecay(Selective):
    r"""Decoupled weight decay: w ← (1 − lr·λ)·w before the optimizer's update.

    This is AdamW's meaning, and bit-equal to AdamW when attached to Adam: the decay is scaled by
    the parameter group's learning rate as it is at that step, and does not pass through momentum
    or second moments. For the coupled meaning, an addition to the gradient, use ``l2``:
    ``l2(λ)`` equals ``weight_decay=2λ`` of SGD. Other conventions are a matter of ``scale``;
    ``session.describe()`` says what λ comes to in each.

    Args:
        strength: λ, a finite number ≥ 0, a schedule of the step count, or a mapping of patterns to
            these; AdamW's default is 0.01.
        scale: what λ is multiplied by at each step: ``"lr"``, as torch's AdamW; ``"schedule"``,
            lr/lr₀, as Composer's DecoupledAdamW, so that λ is the share that is lost in a step at
            the initial lr; ``"none"``, nothing: λ is that share at every step; ``"lr_squared"``,
            lr²/lr_max, as AdamC and timm's ``corrected_weight_decay``.
        reference_lr: lr₀ or lr_max. By default each group's own, taken when it is attached and
            saved with the session: its ``initial_lr`` (for lr_max its ``max_lr``, if it has one),
            which torch's schedulers set, else its lr.
        where: the parameters, by default ``"weights"``, which spares biases and norms.
        existing: what to do where the optimizer itself decays a covered parameter (AdamW decays
            by 0.01 unless told otherwise): ``"error"``; ``"replace"``, which sets the
            ``weight_decay`` of those whole parameter groups to 0 until detached (what is saved or
            copied of the optimizer keeps its own, and a value that the loop sets later is taken
            over too, with a warning); or ``"add"``.
        cautious: decay only the elements that the optimizer's own update moves towards 0 or not at
            all: with the update u of this step, w ← w − u − lr·λ·w·[u·w ≥ 0], Chen et al.'s
            cautious weight decay. It holds a copy of the covered weights during the step, for no
            optimizer tells its update, and one kernel reads both.
        name: the key of its metrics.

    Raises:
        SpecError: ``strength`` is negative or not finite, ``existing`` or ``scale`` is none of
            these, or the optimizer decays already; at a step, if it has begun to since.
        SelectionError: ``where`` is no selection, or covers nothing.
        RegplugError: the learning rate of a hand-written update is not known.

    References:
        Ilya Loshchilov, Frank Hutter, "Decoupled Weight Decay Regularization", 2019,
        https://arxiv.org/abs/1711.05101.
        Aaron Defazio, "Why Gradients Rapidly Increase Near the End of Training", 2025,
        https://arxiv.org/abs/2506.02285 (AdamC).
        Composer, ``DecoupledAdamW``, https://github.com/mosaicml/composer.
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

    reads_gradients = False
    by_pattern = True
    strength = Scheduled()

    def __init__(
        self,
        strength: ScheduleLike,
        *,
        scale: str = "lr",
        reference_lr: float | None = None,
        where: object = "weights",
        existing: str = "error",
        cautious: bool = False,
        name: str | None = None,
    ) -> None:
        self._own = Existing(existing)
        self._scale = Scale(scale, reference_lr)
        self._references = self._scale.known
        self.scale, self.reference_lr = scale, reference_lr
        self.strength = strength
        self.where = where  # type: ignore[assignment]
        self.existing = existing
        self.cautious = self.order_matters = bool(cautious)
        self.name = name
        self._before: list[tuple[list[torch.Tensor], list[torch.Tensor], Any]] = []
        self._checked: Coverage | None = None
        self._run: Elementwise | None = None
        self._handed: list[int] = []
        self._lent: list[lent.Loan] = []
        self._loans: dict[int, lent.Loan] = {}
        self._sessions = -1
        self._coarse = False

    @hookimpl
    def on_attach(self, session: SessionView) -> None:
        """Check what the optimizer decays by itself, and take it over if asked to."""
        self._run = None
        self._scale.begin(session)
        self._take_over(session)
        self._own.attach(session, self._take_over)

    def _take_over(self, session: SessionView) -> None:
        self._checked = coverage = session.coverage(self._selection)
        self._coarse = any(entry.parameter.dtype in HALVES for entry in coverage)
        self._hand_over(session)
        self._own.begin(session.groups, coverage.by_group, self, session.optimizer)

    def _hand_over(self, session: SessionView) -> None:
        """Find the groups that the optimizer's own update is to decay."""
        self._sessions = sessions.changes()
        self._handed = []
        optimizer, other = session.optimizer, self.cautious or self.scale != "lr"
        if optimizer is None or self.existing == "add" or other or not session.handover:
            return
        # Whoever looks at the weights after this plugin is to see decayed ones: others that act
        # before the step, and sessions that were attached later, whose every event comes later.
        after = (p for other in sessions.after(session) for p in other.plugins)
        others = (p for p in session.plugins if p is not self)
        if any(hears(p, "on_gradients", "before_step") for p in after) or any(
            hears(p, "before_step") for p in others
        ):
            return
        by_group = session.coverage(self._selection).by_group
        self._handed = [index for index in by_group if self._can_hand_over(session, index)]

    def _can_hand_over(self, session: SessionView, index: int) -> bool:
        """Whether the optimizer's own update would do just the same to this group, at no cost."""
        group, coverage = session.groups[index], session.coverage(self._selection)
        exact = type(session.optimizer) is torch.optim.AdamW or (
            type(session.optimizer) in _DECOUPLED and group.get("decoupled_weight_decay", False)
        )
        covered = coverage.by_group[index]
        whole = len(covered) == len(group["params"]) and self.is_uniform(session, covered)
        return exact and whole and all(p.requires_grad for p in group["params"])

    @hookimpl
    def after_step(self, session: SessionView) -> None:
        """Decay cautiously, if asked to."""
        before, self._before = self._before, []
        if before and self._run is None:
            self._run = Elementwise(self.name, session.kernels)
        for weights, earlier, decay in before:
            assert self._run is not None
            if is_elsewhere(decay):
                self._run(_cautious, weights, earlier, scalars=[decay])
            else:
                self._run(partial(_cautious, decay=float(decay)), weights, earlier)

    def _take_back(self) -> None:
        """Set back the groups: between steps they, and what is saved of them, are the user's."""
        while self._lent:
            lent.pay_back(self._lent[-1])
            self._lent.pop()

    @hookimpl
    def on_detach(self, session: SessionView) -> None:
        """Give the optimizer its own weight_decay back."""
        self._take_back()
        self._handed, self._before, self._loans = [], [], {}
        self._own.detach()
        self._checked = None

    @hookimpl
    def before_step(self, session: SessionView) -> None:
        """Decay the weights that take part in this step."""
        if self._lent:  # the optimizer's update may have raised last time
            self._take_back()
        self._before = []
        coverage = session.coverage(self._selection)
        if coverage is not self._checked:
            self._take_over(session)
        else:
            self._own.go_on(session.groups, coverage.by_group, self, session.optimizer)
        if self._own.first:
            self._own.step(session)
        if (strength := self.strength) == 0:
            return
        if self._sessions != sessions.changes():
            self._hand_over(session)
        together: list[torch.Tensor] = []
        shares: list[float] = []
        mapped, plain = self._mapped, self.scale == "lr"
        updates = self.by_part(session) if mapped else session.updates(self._selection)
        for index, weights, _ in updates:
            if mapped and (strength := self.strength) == 0:
                continue
            if plain:  # as Scale.of says it, without a call more in each step
                decay = session.learning_rate(index) * strength
            else:
                decay = self._scale.of(session, index, strength)
            if self._coarse:
                self._coarse = not rounds_away(self.name, weights, decay)  # once is enough
            if index in self._handed and self._lends(session, index, weights, strength):
                continue
            parts = [local(w) for w in weights]
            if self.cautious:
                self._before.append((parts, [w.clone() for w in parts], decay))
            elif mapped and isinstance(decay, float):
                together += parts
                shares += [1 - decay] * len(parts)
            else:
                # The expression of torch's AdamW, to the bit; a tensor lr stays on its device.
                torch._foreach_mul_(parts, 1 - decay)
        if together:
            torch._foreach_mul_(together, shares)

    def _lends(
        self, session: SessionView, index: int, weights: Sequence[torch.Tensor], by: float
    ) -> bool:
        """Have the optimizer decay the group by ``by`` in its update, if it can."""
        group = session.groups[index]
        if len(weights) != taking(group):
            return False
        # A compiled update would be compiled anew for each number of this kind.
        if called_by_a_graph() and type(type(self).strength.schedule(self)) is not constant:
            return False
        loan = lent.lend(group, "weight_decay", by, self._loans.get(index))
        self._loans[index] = loan
        if not self._lent:  # before any plugin can raise in after_step
            session.once_updated(self._take_back)
        self._lent.append(loan)
        return True

    def idle(self, session: SessionView) -> tuple[str, ...]:
        """After the update only the cautious kind acts, and a subclass's own hook."""
        own = type(self).after_step is not WeightDecay.after_step
        return () if self.cautious or own else ("after_step",)

    @hookimpl
    def on_metrics(self, session: SessionView) -> Mapping[str, Any]:
        """Return the strength."""
        return {"strength": self.strength, **self.figures_by_part(session)}

    @hookimpl
    def on_state(self, session: SessionView) -> Mapping[str, Any]:
        """Return the learning rates that λ is measured by."""
        return {"reference_lr": dict(self._references)} if self._references else {}

    @hookimpl
    def on_load_state(self, session: SessionView, state: Mapping[str, Any]) -> None:
        """Take those of the run that goes on."""
        self._scale.load(state, self.name)

    def notes(self, session: SessionView) -> Sequence[str]:
        """Return what is covered, and what λ comes to in other conventions."""
        groups = session.coverage(self._selection).by_group
        return [*super().notes(session), *self._scale.said_of(self, session, groups)]

    def acts(self, session: SessionView) -> str:
        """Return when it acts, and on what terms."""
        if self._checked is not None and self._sessions != sessions.changes():
            self._hand_over(session)
        if self._handed and len(self._handed) == len(session.coverage(self._selection).by_group):
            return f"the update of {type(session.optimizer).__name__} itself"
        when = "after_step, cautiously" if self.cautious else "before_step"
        return when + self._own.said()


def _cautious(w: torch.Tensor, old: torch.Tensor, decay: Any) -> torch.Tensor:
    # The update was old − w, so far: of the same sign as old if it shrinks.
    shrinks = torch.sign(old - w) * torch.sign(old) >= 0
    return w - torch.where(shrinks, old * decay, 0)
