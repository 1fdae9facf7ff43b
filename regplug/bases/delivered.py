"""How a penalty reaches the weights: its delivery, and the events in which it acts.

:class:`regplug.Penalty` adds the formula. Here is all that is the same for every formula.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch

from regplug.backend.copied import reduced_without
from regplug.backend.groups import sign
from regplug.backend.marks import is_own
from regplug.bases.selective import Selective
from regplug.delivery import at_step, terms
from regplug.delivery.executed import executed_by
from regplug.delivery.parted import Parted
from regplug.delivery.proximal import apply_elementwise_steps, apply_one_step
from regplug.delivery.refused import (
    refuse_apart,
    refuse_elementwise_steps,
    refuse_silent_loss,
    refuse_sparse,
    refuse_sparse_gradients,
)
from regplug.errors import SpecError
from regplug.hookspecs import hookimpl
from regplug.kernels.kernel import Kernel
from regplug.kernels.pieces import NO_LAYOUTS
from regplug.plugin import Scheduled
from regplug.selection.coverage import Coverage
from regplug.view import SessionView, Update

__all__ = ["DELIVERIES", "Delivered"]

DELIVERIES = ("auto", "loss", "step", "proximal")


class Delivered(Selective):
    """A plugin that is delivered in the loss, at the step, or by a proximal operator.

    A subclass has the formula, and gives deliveries a kernel of it.
    """

    scaled_gradients = True
    reads_gradients = False
    by_pattern = True
    _may_hand_over = False  # whether hands_over() is to be asked

    separable: bool
    orientation: str | None
    elementwise_steps: bool
    composition: str | None

    strength = Scheduled()

    _delivery = "auto"
    _settled: str | None = None  # what "auto" has become, else the delivery
    _warned_of_rounding = False
    _switched = True  # whether a subclass says itself when it is active; known once attached
    _kernels = "auto"
    _known_parts: Parted | None = None

    # --- what a formula gives -------------------------------------------------------------

    def _settle_formula(self, coverage: Coverage) -> None:
        """Find out what can be known of the formula once it is known what it is to act on."""
        raise NotImplementedError

    def _make_formula_kernel(self) -> Kernel:
        """Return the formula as deliveries execute it, as it is now."""
        raise NotImplementedError

    def _check_has_operator(self) -> None:
        """Raise a :class:`SpecError` if there is no proximal operator."""
        raise NotImplementedError

    @cached_property
    def _formula_kernel(self) -> Kernel:
        # Made by the first event that needs one: a subclass's on_attach may change the formula.
        return self._make_formula_kernel()

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Copies and pickles make a kernel of their own: this one is bound to the original.
        return reduced_without("_formula_kernel", super().__reduce_ex__(protocol))

    # --- settings -------------------------------------------------------------------------

    @property
    def delivery(self) -> str:
        """The delivery as it was given; :meth:`acts` tells what ``"auto"`` became."""
        return self._delivery

    @delivery.setter
    def delivery(self, delivery: str) -> None:
        if delivery not in DELIVERIES:
            raise SpecError(f"delivery must be one of {', '.join(DELIVERIES)}, got {delivery!r}")
        if delivery == "proximal":
            self._check_has_operator()
        if self._session_name is not None:
            raise SpecError(f"{self.name} is attached: its delivery can't change until detach()")
        self._delivery = delivery
        self._settled = None if delivery == "auto" else delivery

    @property
    def changes_weights(self) -> bool:  # type: ignore[override]
        """Only a proximal operator changes weights."""
        return self._delivery == "proximal"

    @property
    def active(self) -> bool:
        """Whether there is anything to do now. At strength 0 a penalty is as good as absent."""
        return self.strength != 0

    def idle(self, session: SessionView) -> Collection[str]:
        """Return the events of deliveries that are not its own, but for hooks written anew."""
        return self._idle(session, Delivered)

    def _idle(self, session: SessionView, base: type) -> Collection[str]:
        if self._settled == "proximal":
            others = ["on_loss", "on_gradients", "on_closure"]
        elif self._settled == "step":
            others = ["on_loss", "after_step"]
        elif session.steps and self._settled == "loss":
            others = ["on_gradients", "on_closure", "after_step"]
        else:  # "auto" has not settled, or it is to be seen whether the loss event ever fires
            others = ["after_step"]
        return [event for event in others if not is_own(self, event, base)]

    def waits_for_loss(self, session: SessionView) -> bool:
        """Return whether it is delivered in the loss, and not at strength 0."""
        return self._settled == "loss" and self.active

    # --- events ---------------------------------------------------------------------------

    @hookimpl
    def on_attach(self, session: SessionView) -> None:
        """Check what can be known before the first step."""
        self._settled = None if self._delivery == "auto" else self._delivery
        self._warned_of_rounding = False
        self._kernels = session.kernels
        vars(self).pop("_formula_kernel", None)
        _ = self.active  # says so if a strength was never set
        self._switched = type(self).active is not Delivered.active
        coverage = session.coverage(self._selection)
        self._settle_formula(coverage)
        if coverage.apart:  # what is trained is not what the model computes with
            if self._settled == "loss":
                refuse_apart(self.name)
            self._settled = self._settled or "step"
        if self._settled == "proximal":
            self._check_has_operator()
            apart = not self.separable and not self.elementwise_steps
            if session.update_rule().elementwise and apart:
                refuse_elementwise_steps(self.name, session.optimizer)
            return
        refuse_sparse(self.name, coverage)

    @hookimpl
    def on_loss(self, session: SessionView) -> terms.Term | None:
        """Return the penalty as a term of the loss, unless it is delivered elsewhere."""
        if self._settled not in (None, "loss") or not (strength := self._strength_now()):
            return None
        return self._term(session, strength)

    def _strength_now(self) -> float:
        """Return λ, 0 where there is nothing to do now: what is asked in each event."""
        return self.strength if not self._switched or self.active else 0.0

    def _term(self, session: SessionView, strength: float) -> terms.Term:
        """Return λ, with the sign that each group's objective gives it, and the coverage."""
        groups, coverage = session.groups, session.coverage(self._selection)
        shares = self._parted(session).shares(coverage) if self._mapped else None
        factor = strength if shares is None else 1.0
        factors = tuple([factor * sign(groups[i]) for i in coverage.by_group])
        return terms.Term(self._formula_kernel, coverage, factors, shares)

    def _parted(self, session: SessionView) -> Parted:
        """Return the parts of a penalty whose strengths are by pattern."""
        kernel, strengths = self._formula_kernel, self.strengths_by_part(session)
        known = self._known_parts
        if known is None or (known.kernel, known.strengths) != (kernel, strengths):
            self._known_parts = known = Parted(kernel, strengths, self._strength_now)
        return known

    @hookimpl
    def on_gradients(self, session: SessionView) -> None:
        """Add the gradient to ``.grad``, if that is the delivery."""
        if self._settled != "step" and self._settle(session) != "step":
            return
        if not (strength := self._strength_now()):
            return
        together: at_step.Together = {}
        parted = self._parted(session) if self._mapped else None
        for update in session.updates(self._selection):
            if self._may_hand_over and (
                self.hands_over(session, update)
                if parted is None
                else parted.hands_over(update[1], partial(self.hands_over, session, update))
            ):
                continue
            index, weights, gradients = update
            key = sign(session.groups[index]), weights[0].dtype, weights[0].device
            if key in together:
                at_step.join(together[key], weights, gradients)
            else:
                together[key] = weights, gradients
        if not together:
            return
        kernel = self._formula_kernel
        scale = session.gradient_scale
        layouts = session.coverage(self._selection).layouts if kernel.orientation else NO_LAYOUTS
        for (direction, *_), (weights, gradients) in together.items():
            factor = strength * scale * direction
            if not self._warned_of_rounding:
                self._warned_of_rounding = True
                at_step.warn_of_rounding(kernel, gradients, weights, factor)
            try:
                if parted is None:
                    at_step.add_gradients(kernel, gradients, weights, factor, layouts)
                else:
                    parted.add_gradients(gradients, weights, scale * direction, layouts)
            except RuntimeError as error:
                refuse_sparse_gradients(self.name, gradients, error)
                raise

    def hands_over(self, session: SessionView, update: Update) -> bool:
        """Return whether a gradient reaches this update by another way, as none does here."""
        return False

    @hookimpl
    def on_closure(self, session: SessionView) -> "torch.Tensor | float | None":
        """Return the value whose gradient was added, for a line search."""
        if self._settled != "step" or not (strength := self._strength_now()):
            return None
        return terms.total(self._term(session, strength))

    @hookimpl
    def after_step(self, session: SessionView) -> None:
        """Apply the proximal operator, if that is the delivery."""
        if self._settled != "proximal" or not self.active:
            return
        kernel, rule, groups = self._formula_kernel, session.update_rule(), session.groups
        layouts = session.coverage(self._selection).layouts if kernel.orientation else NO_LAYOUTS
        parted = self._parted(session) if self._mapped else None
        elementwise = rule.elementwise
        states = session.stateful.state if elementwise else {}
        for index, weights, gradients in session.updates(self._selection):
            group = groups[index]
            if parted is not None:
                parted.apply_proximal(rule, group, states, weights, gradients, layouts)
            elif elementwise:
                apply_elementwise_steps(kernel, rule, group, states, weights, gradients, layouts)
            else:
                step = rule.step(group, {}, gradients[0])
                apply_one_step(kernel, weights, step, layouts)

    @hookimpl
    def on_metrics(self, session: SessionView) -> Mapping[str, Any]:
        """Return value (strength included), strength and share of exact zeros."""
        from regplug.selection.in_use import in_use  # not before somebody asks

        coverage = session.coverage(self._selection)
        strengths, used = self.strengths(), in_use(coverage)
        # Companions belong to the parameters themselves.
        valued = coverage if self._formula_kernel.has_companions else used
        factor, shares = strengths.get("strength", 1.0), None
        if self._mapped:
            factor, shares = 1.0, self._parted(session).shares_in_use(coverage, valued)
            strengths = {**strengths, **self.figures_by_part(session)}
        value = terms.value(self._formula_kernel, valued, factor, shares)
        return {"value": value, **strengths, "zeros": terms.zeros(used, self._kernels)}

    def _settle(self, session: SessionView) -> str:
        if self._settled is None:
            self._settled = "loss" if session.gradients_through_loss else "step"
        elif self._settled == "loss" and not session.gradients_through_loss:
            refuse_silent_loss(self.name)
        return self._settled

    def agreement(self, session: SessionView) -> Mapping[str, Any]:
        """Return the settings, and what they come to in this model."""
        return {**super().agreement(session), "delivery": self._delivery}

    def acts(self, session: SessionView) -> str:
        """Return the delivery, with what ``"auto"`` became."""
        if self._delivery == "auto":
            return f"{self._settled} (auto)" if self._settled else "auto"
        return self._delivery

    def notes(self, session: SessionView) -> Sequence[str]:
        """Return what is covered if it is little, what is special, and what executes it."""
        return [*super().notes(session), *self.executed(session)]

    def executed(self, session: SessionView) -> Sequence[str]:
        """Return by what kernels, where a compiler serves; nothing where torch does it, as ever."""
        covered = session.coverage(self._selection).trainable
        return executed_by(self._formula_kernel, self._settled or "auto", covered)
