"""A regularizer that is a formula: :class:`Penalty`.

A whole one:

>>> import regplug, torch
>>> class Smooth(regplug.Penalty):
...     "λ·Σ log cosh(w)"
...     separable = True
...     def value(self, w):
...         return w.cosh().log().sum()
>>> model = torch.nn.Linear(3, 1)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> session = regplug.attach(model, optimizer, [Smooth(1e-3)])
>>> session.plugins[0].name
'smooth'
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

import torch

from regplug.backend.groups import sign
from regplug.backend.layouts import Layout
from regplug.delivery import at_step, terms
from regplug.delivery.proximal import each_proximal_, elementwise_proximal, proximal
from regplug.errors import PluginError, RegplugError, SpecError, UnsupportedError
from regplug.hookspecs import hookimpl
from regplug.kernels import formulas
from regplug.plugin import Plugin, Scheduled
from regplug.schedules import ScheduleLike
from regplug.selection.coverage import Coverage
from regplug.selection.in_use import in_use, notes
from regplug.selection.where import Selection, Where
from regplug.view import SessionView

__all__ = ["DELIVERIES", "Penalty"]

DELIVERIES = ("auto", "loss", "step", "proximal")


class Penalty(Plugin):
    r"""A term ``strength · Σ value(w)`` of the objective, over the selected parameters.

    Subclasses write :meth:`value`, and :meth:`gradient` and :meth:`proximal` if they like.

    Args:
        strength: λ, a finite number ≥ 0 or a schedule of the step count.
        where: the parameters, see :class:`regplug.selection.where.Selection`.
        delivery: how the penalty reaches the weights:

            - ``"step"``: its gradient is added to ``.grad`` when the gradients are final. Once per
              real step, at full strength, whatever accumulation, clipping and scaling did before.
            - ``"loss"``: ``session.loss`` adds it to the loss, the textbook form: it is
              accumulated, clipped and scaled with the loss.
            - ``"proximal"``: its proximal operator is applied after the update, with the step
              that the optimizer effectively takes: exact zeros.
            - ``"auto"``: settled at the first real step, ``"loss"`` if the gradients came through
              ``session.loss``, else ``"step"``. Never both.
        name: the key of its state and metrics, where one session has two of a kind.

    Raises:
        SpecError: ``strength`` is negative or not finite, ``delivery`` is not one of these, or it
            is ``"proximal"`` and there is no :meth:`proximal`.
        SelectionError: ``where`` is no selection.
    """

    separable: bool = False
    """Whether the value is a sum over elements. Then :meth:`value`, :meth:`gradient` and
    :meth:`proximal` may be given flat float32 pieces: shards and blocks of a parameter, or small
    parameters together."""

    elementwise_steps: bool = False
    """Whether :meth:`proximal` of a non-separable penalty solves its problem for a tensor of
    steps, as Adam and its like have. A separable one always does."""

    orientation: str | None = None
    """``"rows"`` or ``"columns"`` for a formula of outputs, or inputs: a weight of any layer is
    then given with outputs first and inputs second, ``(out, in, …)``. By type of layer: transposed
    convolutions keep inputs first. With groups a row has the inputs of its group,
    ``(out, in/groups, …)``, and a column the outputs of its group, ``(out/groups, in, …)``. None
    for weights as they are kept. It is no matter for a separable penalty."""

    composition: str | None = None
    """What :meth:`proximal` does, where it is known: proximal operators of several penalties, one
    after another, are that of their sum in one order at most, in which a session calls them.
    ``"threshold"``: magnitudes are reduced by step·c (l1). ``"groups"``: norms of groups are.
    ``"scale"``: weights are divided by 1 + step·c (l2). ``"threshold and scale"``: both (elastic
    net). ``"pull"``: weights are drawn to a point of their own. None: nothing is known."""

    scaled_gradients = True

    strength = Scheduled()

    def __init__(
        self,
        strength: ScheduleLike,
        *,
        where: Where = "weights",
        delivery: str = "auto",
        name: str | None = None,
    ) -> None:
        self.strength = strength
        self.where = where
        self.delivery = delivery
        self.name = name

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls._separable_unproven = formulas.settle(cls, Penalty)
        cls._has_companions = cls.companions is not Penalty.companions

    def _writes(self, name: str) -> bool:
        """Whether this penalty has a method of that name which is not the base class's."""
        own = getattr(self, name)
        return getattr(own, "__func__", own) is not getattr(Penalty, name)

    @property
    def _plain(self) -> bool:
        """Whether its formulas act element by element, and on nothing but the weight."""
        return self.separable and not self._has_companions

    # --- the formula ----------------------------------------------------------------------

    def value(self, w: torch.Tensor) -> torch.Tensor:
        """Return the penalty of one parameter, a 0-d tensor, differentiable, without λ."""
        raise NotImplementedError(f"{type(self).__name__} must define value(w)")

    def gradient(self, w: torch.Tensor) -> torch.Tensor:
        """Return the gradient of :meth:`value` at ``w``, shaped like it, without λ.

        Written here by autograd; a formula of your own saves time. It must not change ``w``, and
        must itself be differentiable for a loss that is differentiated twice.
        """
        return self._by_autograd(w)

    def _by_autograd(self, w: torch.Tensor, *companions: torch.Tensor) -> torch.Tensor:
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            if not (create_graph and w.requires_grad):
                w = w.detach().requires_grad_()
            value = self.value(w, *companions)
            (gradient,) = torch.autograd.grad(value, w, create_graph=create_graph)
        return gradient

    def proximal(self, w: torch.Tensor, step: "float | torch.Tensor") -> torch.Tensor:
        """Return argmin over u of ``½‖u − w‖²/step + λ·value(u)``, shaped like ``w``.

        λ is ``self.strength``. ``step`` is a number, or a tensor like ``w`` with a step for each
        element, 0 where the element is to stay as it is. Such a tensor is good for this call only:
        its memory will hold the next one.
        """
        raise NotImplementedError(f"{type(self).__name__} has no proximal operator")

    def companions(self, w: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return tensors that belong to a parameter, element by element: none, unless overridden.

        They reach the formulas as further arguments, cut and gathered as ``w`` is: a penalty that
        has one writes ``value(w, c=None)``, ``gradient(w, c=None)``, ``proximal(w, step, c=None)``,
        and for lists, if at all, ``add_gradients(gradients, weights, factor, cs=())`` and
        ``proximal_(weights, step, cs=())``. Here ``w`` is the parameter itself, and each of its
        companions is shaped like it, and a ``DTensor`` if it is one.
        """
        return ()

    def _arranged(self, w: torch.Tensor, layout: Layout | None) -> torch.Tensor:
        """Return a whole weight, or what is shaped like it, as the formulas want it."""
        if layout is None or self.orientation is None or self.separable:
            return w
        return layout.arranged(w, self.orientation)

    def _restored(self, found: torch.Tensor, layout: Layout | None) -> torch.Tensor:
        """Return what formulas made of it as the weight is kept."""
        if layout is None or self.orientation is None or self.separable:
            return found
        return layout.restored(found, self.orientation)

    def _refuse_value(self, value: object) -> NoReturn:
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else value
        raise PluginError(f"{self.name}: value(w) must return a 0-d tensor, got {shape!r}")

    def _shaped_gradient(self, w: torch.Tensor, *companions: torch.Tensor) -> torch.Tensor:
        """Return :meth:`gradient`, checked to be shaped like ``w``.

        Raises:
            PluginError: it is not.
        """
        if companions and not self._writes("gradient"):
            gradient = self._by_autograd(w, *companions)
        else:
            gradient = self.gradient(w, *companions)
        if gradient.shape != w.shape:
            raise PluginError(
                f"{self.name}: gradient(w) must be shaped like w, {tuple(w.shape)}, "
                f"got {tuple(gradient.shape)}"
            )
        return gradient

    # --- the same on lists, for speed -----------------------------------------------------
    #
    # A separable penalty is mostly called through these. A list is a batch of pieces, a few
    # mebibytes together, so temporaries like them are cheap; override one where ``torch._foreach``
    # or a fused operation does better than a call of the formula for each piece.

    def gradients(self, weights: list[torch.Tensor], factor: float) -> list[torch.Tensor]:
        """Return ``factor · gradient(w)`` for each of ``weights``: new tensors, one for each."""
        return [self._shaped_gradient(w.detach()) * factor for w in weights]

    def add_gradients(
        self, gradients: list[torch.Tensor], weights: list[torch.Tensor], factor: float
    ) -> None:
        """Add ``factor · gradient(w)`` to each of ``gradients``, in place."""
        at_step.add_each_gradient(self, gradients, weights, factor)

    def proximal_(self, weights: list[torch.Tensor], step: "float | torch.Tensor") -> None:
        """Replace each weight by its proximal point, in place.

        ``step`` is a number for all of them, or a tensor like the only one, which may be used up.
        """
        each_proximal_(self, weights, step)

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

    def _check_writes_proximal(self) -> None:
        if self._writes("proximal"):
            return
        kind, why = type(self).__name__, ""
        if (author := formulas.stale_proximal(self, Penalty)) is not None:
            why = f" (that of {author} is of another value: write proximal(w, step) too)"
        raise SpecError(
            f"delivery='proximal': {kind} has no proximal operator{why}; use 'step' or 'loss'"
        )

    _separable_unproven = False  # an ancestor's word, for another value
    _has_companions = False  # settled when attached, since it is asked for at every event
    _selection = Selection()
    _delivery = "auto"
    _settled: str | None = None
    _told_rounding = False

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
        return [event for event in others if not self._writes(event)]

    def waits_for_loss(self, session: SessionView) -> bool:
        """Return whether it is delivered in the loss, and not at strength 0."""
        return self._settled == "loss" and self.active

    # --- events ---------------------------------------------------------------------------

    @hookimpl
    def on_attach(self, session: SessionView) -> None:
        """Check what can be known before the first step."""
        self._settled = None if self._delivery == "auto" else self._delivery
        self._told_rounding = False
        self._has_companions = self._writes("companions")
        unproven = formulas.settle_instance(self, Penalty) or self._separable_unproven
        _ = self.active  # says so if a strength was never set
        coverage = session.coverage(self._selection)
        if unproven and self.separable and not self._has_companions:
            self.separable = not coverage or formulas.adds_up(self, coverage[0].parameter)
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
        return terms.Term(self, coverage, factors)

    @hookimpl
    def on_gradients(self, session: SessionView) -> None:
        """Add the gradient to ``.grad``, if that is the delivery."""
        if self._settled != "step" and self._settle(session) != "step":
            return
        if not self.active:
            return
        scale = self.strength * session.gradient_scale
        layouts = self._layouts(session)
        for index, weights, gradients in session.updates(self._selection):
            factor = scale * sign(session.groups[index])
            if not self._told_rounding:
                self._told_rounding = True
                at_step.tell_rounding(self, gradients, weights, factor)
            try:
                at_step.add_gradients(self, gradients, weights, factor, layouts)
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
        rule = session.update_rule()
        layouts = self._layouts(session)
        for index, weights, gradients in session.updates(self._selection):
            group = session.groups[index]
            if rule.elementwise:
                assert session.optimizer is not None
                states = session.optimizer.state
                elementwise_proximal(self, rule, group, states, weights, gradients, layouts)
            else:
                step = rule.step(group, {}, gradients[0])
                proximal(self, weights, step, layouts)

    def _layouts(self, session: SessionView) -> Mapping[torch.Tensor, Layout]:
        return session.coverage(self._selection).layouts if self.orientation else {}

    @hookimpl
    def on_metrics(self, session: SessionView) -> Mapping[str, Any]:
        """Return value (strength included), strength and share of exact zeros."""
        coverage = session.coverage(self._selection)
        strengths = self.strengths()
        used = in_use(coverage)
        # Companions belong to the parameters themselves.
        valued = coverage if self._has_companions else used
        value = terms.value(self, valued, factor=strengths.get("strength", 1.0))
        return {"value": value, **strengths, "zeros": terms.zeros(used)}

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
