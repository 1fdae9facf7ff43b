"""How a penalty reaches the weights: its delivery, and the events in which it acts.

:class:`regplug.Penalty` adds the formula. Here is all that is the same for every formula.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from regplug.backend.groups import sign
from regplug.backend.layouts import Layout
from regplug.delivery import at_step, terms
from regplug.delivery.proximal import elementwise_proximal, proximal
from regplug.errors import RegplugError, SpecError, UnsupportedError
from regplug.hookspecs import hookimpl
from regplug.kernels.kernel import Kernel
from regplug.plugin import Plugin, Scheduled
from regplug.selection.coverage import Coverage
from regplug.selection.in_use import in_use, notes
from regplug.selection.where import Selection, Where
from regplug.view import SessionView

__all__ = ["DELIVERIES", "Delivered"]

DELIVERIES = ("auto", "loss", "step", "proximal")


class Delivered(Plugin):
    """A plugin that is delivered in the loss, at the step, or by a proximal operator.

    A subclass has the formula, and gives deliveries a kernel of it.
    """

    scaled_gradients = True

    separable: bool
    orientation: str | None
    elementwise_steps: bool

    strength = Scheduled()

    _selection = Selection()
    _delivery = "auto"
    _settled: str | None = None  # what "auto" has become, else the delivery
    _told_rounding = False
    _kernels = "auto"

    # --- what a formula gives -------------------------------------------------------------

    def _settle_formula(self, coverage: Coverage) -> None:
        """Find out what can be known of the formula once it is known what it is to act on."""
        raise NotImplementedError

    def _make_formula_kernel(self) -> Kernel:
        """Return the formula as deliveries execute it, as it is now."""
        raise NotImplementedError

    def _check_writes_proximal(self) -> None:
        """Raise a :class:`SpecError` if there is no proximal operator."""
        raise NotImplementedError

    @cached_property
    def _formula_kernel(self) -> Kernel:
        """The kernel, made by the first event after attach that needs one.

        Not by ``on_attach``, since that of a subclass may still change what the formula is.
        """
        return self._make_formula_kernel()

    # --- settings -------------------------------------------------------------------------

    @property
    def where(self) -> Where:
        """The selection as it was given."""
        return self._selection.where

    @where.setter
    def where(self, where: Where) -> None:
        self._selection = Selection(where)

    @property
    def delivery(self) -> str:
        """The delivery as it was given; :meth:`acts` tells what ``"auto"`` became."""
        return self._delivery

    @delivery.setter
    def delivery(self, delivery: str) -> None:
        if delivery not in DELIVERIES:
            raise SpecError(f"delivery must be one of {', '.join(DELIVERIES)}, got {delivery!r}")
        if delivery == "proximal":
            self._check_writes_proximal()
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
        if self._settled == "proximal":
            others = ["on_loss", "on_gradients", "on_closure"]
        elif self._settled == "step":
            others = ["on_loss", "after_step"]
        elif session.steps and self._settled == "loss":
            others = ["on_gradients", "on_closure", "after_step"]
        else:  # "auto" has not settled, or it is to be seen whether the loss event ever fires
            others = ["after_step"]
        return [event for event in others if not _is_own(self, event)]

    def waits_for_loss(self, session: SessionView) -> bool:
        """Return whether it is delivered in the loss, and not at strength 0."""
        return self._settled == "loss" and self.active

    # --- events ---------------------------------------------------------------------------

    @hookimpl
    def on_attach(self, session: SessionView) -> None:
        """Check what can be known before the first step."""
        self._settled = None if self._delivery == "auto" else self._delivery
        self._told_rounding = False
        self._kernels = session.kernels
        vars(self).pop("_formula_kernel", None)
        _ = self.active  # says so if a strength was never set
        coverage = session.coverage(self._selection)
        self._settle_formula(coverage)
        if self._settled == "proximal":
            self._check_writes_proximal()
            self._check_proximal(session)
            return
        for entry in coverage:
            if getattr(entry.module, "sparse", False) is True:
                raise UnsupportedError(
                    f"{self.name}: {entry.name} has sparse gradients ({type(entry.module).__name__}"
                    "(sparse=True)), to which no dense gradient can be added: use sparse=False, "
                    f"delivery='proximal', or exclude it with where=[…, '!{entry.name}']"
                )

    def _check_proximal(self, session: SessionView) -> None:
        rule = session.update_rule()
        if rule.elementwise and not self.separable and not self.elementwise_steps:
            raise UnsupportedError(
                f"{self.name}: {type(session.optimizer).__name__} takes a step of its own for each "
                "element, for which the proximal operator of a penalty that is not separable has "
                "no closed form: use SGD, or delivery='step' (if it does act element by element, "
                "say separable = True)"
            )

    @hookimpl
    def on_loss(self, session: SessionView) -> terms.Term | None:
        """Return the penalty as a term of the loss, unless it is delivered elsewhere."""
        if self._settled not in (None, "loss") or not self.active:
            return None
        return self._term(session)

    def _term(self, session: SessionView) -> terms.Term:
        """Return λ, with the sign that each group's objective gives it, and the coverage."""
        strength, groups, coverage = (
            self.strength,
            session.groups,
            session.coverage(self._selection),
        )
        factors = tuple([strength * sign(groups[i]) for i in coverage.by_group])
        return terms.Term(self._formula_kernel, coverage, factors)

    @hookimpl
    def on_gradients(self, session: SessionView) -> None:
        """Add the gradient to ``.grad``, if that is the delivery."""
        if self._settled != "step" and self._settle(session) != "step":
            return
        if not self.active:
            return
        kernel = self._formula_kernel
        scale = self.strength * session.gradient_scale
        layouts = self._layouts(session)
        for index, weights, gradients in session.updates(self._selection):
            factor = scale * sign(session.groups[index])
            if not self._told_rounding:
                self._told_rounding = True
                at_step.tell_rounding(kernel, gradients, weights, factor)
            try:
                at_step.add_gradients(kernel, gradients, weights, factor, layouts)
            except RuntimeError as error:
                if any(g.layout != torch.strided for g in gradients):
                    raise UnsupportedError(
                        f"{self.name}: a gradient is sparse, to which no dense gradient can be "
                        "added: exclude that parameter, or use delivery='proximal'"
                    ) from error
                raise

    @hookimpl
    def on_closure(self, session: SessionView) -> "torch.Tensor | float | None":
        """Return the value whose gradient was added, for a line search."""
        if self._settled != "step" or not self.active:
            return None
        return terms.total(self._term(session))

    @hookimpl
    def after_step(self, session: SessionView) -> None:
        """Apply the proximal operator, if that is the delivery."""
        if self._settled != "proximal" or not self.active:
            return
        kernel, rule = self._formula_kernel, session.update_rule()
        layouts = self._layouts(session)
        for index, weights, gradients in session.updates(self._selection):
            group = session.groups[index]
            if rule.elementwise:
                assert session.optimizer is not None
                states = session.optimizer.state
                elementwise_proximal(kernel, rule, group, states, weights, gradients, layouts)
            else:
                step = rule.step(group, {}, gradients[0])
                proximal(kernel, weights, step, layouts)

    def _layouts(self, session: SessionView) -> Mapping[torch.Tensor, Layout]:
        return session.coverage(self._selection).layouts if self.orientation else {}

    @hookimpl
    def on_metrics(self, session: SessionView) -> Mapping[str, Any]:
        """Return value (strength included), strength and share of exact zeros."""
        coverage = session.coverage(self._selection)
        strengths = self.strengths()
        used = in_use(coverage)
        # Companions belong to the parameters themselves.
        valued = coverage if self._formula_kernel.has_companions else used
        value = terms.value(self._formula_kernel, valued, factor=strengths.get("strength", 1.0))
        return {"value": value, **strengths, "zeros": terms.zeros(used, self._kernels)}

    def _settle(self, session: SessionView) -> str:
        if self._settled is None:
            self._settled = "loss" if session.gradients_through_loss else "step"
        elif self._settled == "loss" and not session.gradients_through_loss:
            raise RegplugError(
                f"{self.name} has delivery='loss', but no gradient came through the loss event: "
                "write `loss = session.loss(loss)` before `loss.backward()`, or use delivery='step'"
            )
        return self._settled

    def agreement(self, session: SessionView) -> Mapping[str, Any]:
        """Return the settings, and what they come to in this model."""
        return {
            **super().agreement(session),
            "delivery": self._delivery,
            "covers": session.coverage(self._selection).names,
        }

    def acts(self, session: SessionView) -> str:
        """Return the delivery, with what ``"auto"`` became."""
        if self._delivery == "auto":
            return f"{self._settled} (auto)" if self._settled else "auto"
        return self._delivery

    def covers(self, session: SessionView) -> tuple[int, int] | None:
        """Return how many tensors and weights are covered."""
        coverage: Coverage = session.coverage(self._selection)
        return len(coverage.trainable), coverage.weights

    def covered(self, session: SessionView) -> Sequence[str]:
        """Return the names of all that is covered, or may be once it has a shape."""
        return session.coverage(self._selection).names

    def notes(self, session: SessionView) -> Sequence[str]:
        """Return what is covered if it is little, and what is special about it."""
        return notes(session.coverage(self._selection))


def _is_own(plugin: Delivered, event: str) -> bool:
    """Whether ``plugin`` has a hook of its own for an event."""
    hook = getattr(plugin, event)
    return getattr(hook, "__func__", hook) is not getattr(Delivered, event)
