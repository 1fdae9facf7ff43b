"""What authors subclass: :class:`Plugin` for any hooks, :class:`Penalty` for a formula.

A whole regularizer:

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

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch

from regplug import distributed, optimizers
from regplug.blocks import batches
from regplug.distributions import distribution_of, entry_name_of
from regplug.errors import PluginError, RegplugError, SpecError, UnsupportedError
from regplug.hookspecs import hookimpl
from regplug.parameters import Coverage, Selection, Where
from regplug.schedules import Schedule, ScheduleLike, as_schedule, checked

if TYPE_CHECKING:
    from regplug.session import Session

__all__ = ["DELIVERIES", "Penalty", "Plugin", "Scheduled"]

DELIVERIES = ("auto", "loss", "step", "proximal")


class Scheduled:
    """An attribute that is set to a number or a schedule and read as its value now.

    "Now" is the step that the session is in; before a plugin is attached it is step 0.

    Args:
        low: the smallest value allowed.
        high: the largest value allowed.

    Raises:
        SpecError: on setting or reading a value that is not finite or out of range; it names the
            attribute.

    >>> class Noise(Plugin):
    ...     scale = Scheduled(low=0.0, high=1.0)
    ...     def __init__(self, scale):
    ...         self.scale = scale
    >>> Noise(0.5).scale
    0.5
    """

    def __init__(self, low: float = 0.0, high: float = float("inf")) -> None:
        self.low, self.high = low, high

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, plugin: None, owner: type) -> "Scheduled": ...
    @overload
    def __get__(self, plugin: "Plugin", owner: type) -> float: ...
    def __get__(self, plugin: "Plugin | None", owner: type) -> "Scheduled | float":
        if plugin is None:
            return self
        return self.at(plugin, plugin._step)

    def __set__(self, plugin: "Plugin", value: ScheduleLike) -> None:
        plugin.__dict__[self.name] = as_schedule(value, self.name, low=self.low, high=self.high)

    def schedule(self, plugin: "Plugin") -> Callable[[int], float]:
        """Return the schedule behind the attribute of ``plugin``."""
        try:
            schedule: Callable[[int], float] = plugin.__dict__[self.name]
        except KeyError:
            raise PluginError(
                f"{type(plugin).__name__}.{self.name} was never set: its __init__ should set it, "
                "or call super().__init__"
            ) from None
        return schedule

    def at(self, plugin: "Plugin", step: int) -> float:
        """Return the value at ``step``."""
        return checked(self.schedule(plugin)(step), self.name, low=self.low, high=self.high)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", name).lower()


class Plugin:
    """Base of every plugin. A plugin acts by methods marked with :data:`regplug.hookimpl`.

    The hooks, when each fires and what it may do: :mod:`regplug.hookspecs`. An instance belongs to
    one session at a time.
    """

    changes_weights: bool = True
    """Whether ``before_step`` and ``after_step``, if implemented, change weights. Such a plugin is
    refused with LBFGS, whose line search it would break; a plugin that only watches says False."""

    scaled_gradients: bool = False
    """Whether ``on_gradients`` multiplies what it adds by ``session.gradient_scale`` itself. Else
    the session unscales the gradients first where a fused optimizer has left that to its kernel."""

    _step: int = 0
    _name: str | None = None
    _session_name: str | None = None

    @property
    def name(self) -> str:
        """The name under which state and metrics go: the entry point's, or the class's."""
        return self._name or entry_name_of(type(self)) or _snake_case(type(self).__name__)

    @name.setter
    def name(self, name: str | None) -> None:
        if name is not None and not (isinstance(name, str) and name and "/" not in name):
            raise SpecError(f"name must be a non-empty string without '/', got {name!r}")
        self._name = name

    @property
    def source(self) -> str:
        """The distribution that the plugin comes from, with its version."""
        return " ".join(distribution_of(type(self))).strip()

    def acts(self, session: "Session") -> str:
        """Return in a few words where the plugin acts, for ``session.describe()``."""
        return (
            ", ".join(
                hook
                for hook in ("on_loss", "on_gradients", "before_step", "after_step")
                if hasattr(getattr(type(self), hook, None), "regplug_impl")
            )
            or "nowhere"
        )

    def covers(self, session: "Session") -> tuple[int, int] | None:
        """Return how many tensors and weights are covered, or None if that is no question."""
        return None

    def strengths(self) -> Mapping[str, float]:
        """Return each scheduled attribute with its value now."""
        scheduled = {
            name: None
            for cls in reversed(type(self).__mro__)
            for name, attribute in vars(cls).items()
            if isinstance(attribute, Scheduled) and name in self.__dict__
        }
        return {name: getattr(self, name) for name in scheduled}

    def notes(self, session: "Session") -> Sequence[str]:
        """Return lines that ``session.describe()`` puts under the table."""
        return ()

    def agreement(self, session: "Session") -> Mapping[str, Any]:
        """Return what all ranks must agree on, as plain values with a ``repr`` alike everywhere."""
        return {
            name: repr(value)
            for name, value in sorted(vars(self).items())
            if not name.startswith("_")
            and isinstance(value, int | float | str | None | list | tuple | Schedule)
        }


class Penalty(Plugin):
    r"""A term ``strength · Σ value(w)`` of the objective, over the selected parameters.

    Subclasses write :meth:`value`, and :meth:`gradient` and :meth:`proximal` if they like.

    Args:
        strength: λ, a finite number ≥ 0 or a schedule of the step count.
        where: the parameters, see :class:`regplug.parameters.Selection`.
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
    """Whether the value is a sum over elements. Then shards and blocks are worked on alone:
    :meth:`value`, :meth:`gradient` and :meth:`proximal` may be given flat float32 pieces."""

    elementwise_steps: bool = False
    """Whether :meth:`proximal` of a non-separable penalty solves its problem for a tensor of
    steps, as Adam and its like have. A separable one always does."""

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
        self.strength = strength  # type: ignore[assignment]
        self.where = where
        self.delivery = delivery
        self.name = name  # type: ignore[assignment]

    # --- the formula ----------------------------------------------------------------------

    def value(self, w: torch.Tensor) -> torch.Tensor:
        """Return the penalty of one parameter, a 0-d tensor, differentiable, without λ."""
        raise NotImplementedError(f"{type(self).__name__} must define value(w)")

    def gradient(self, w: torch.Tensor) -> torch.Tensor:
        """Return the gradient of :meth:`value` at ``w``, shaped like it, without λ.

        Written here by autograd; a formula of your own saves time. It must not change ``w``, and
        must itself be differentiable for a loss that is differentiated twice.
        """
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            if not (create_graph and w.requires_grad):
                w = w.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.value(w), w, create_graph=create_graph)
        return gradient

    def proximal(self, w: torch.Tensor, step: "float | torch.Tensor") -> torch.Tensor:
        """Return argmin over u of ``½‖u − w‖²/step + λ·value(u)``, shaped like ``w``.

        λ is ``self.strength``. ``step`` is a number, or a tensor like ``w`` with a step for each
        element, 0 where the element is to stay as it is.
        """
        raise NotImplementedError(f"{type(self).__name__} has no proximal operator")

    # --- the same on lists, for speed -----------------------------------------------------

    def add_gradient(
        self, gradients: list[torch.Tensor], weights: list[torch.Tensor], factor: float
    ) -> None:
        """Add ``factor · gradient(w)`` to each of ``gradients``, in place.

        This is the way of all step deliveries of a separable penalty. The lists hold about a
        mebibyte together, so temporaries like them are cheap. Override it where ``torch._foreach``
        or a fused operation does better than a call of :meth:`gradient` for each.
        """
        for g, w in zip(gradients, weights, strict=True):
            g.add_(self.gradient(w), alpha=factor)

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
        if delivery == "proximal" and type(self).proximal is Penalty.proximal:
            raise SpecError(
                f"delivery='proximal': {type(self).__name__} has no proximal operator; "
                "use 'step' or 'loss'"
            )
        self._delivery = delivery
        self._settled = None if delivery == "auto" else delivery

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

    # --- events ---------------------------------------------------------------------------

    @hookimpl
    def on_attach(self, session: "Session") -> None:
        """Check what can be known before the first step."""
        self._settled = None if self._delivery == "auto" else self._delivery
        self._told_rounding = False
        self.strengths()
        coverage = session.coverage(self._selection)
        if self._settled == "proximal":
            self._check_proximal(session)
            return
        for entry in coverage:
            if getattr(entry.module, "sparse", False) is True:
                raise UnsupportedError(
                    f"{self.name}: {entry.name} has sparse gradients ({type(entry.module).__name__}"
                    "(sparse=True)), to which no dense gradient can be added: use sparse=False, "
                    f"delivery='proximal', or exclude it with where=[…, '!{entry.name}']"
                )

    def _check_proximal(self, session: "Session") -> None:
        rule = session.update_rule()
        if rule.elementwise and not self.separable and not self.elementwise_steps:
            raise UnsupportedError(
                f"{self.name}: {type(session.optimizer).__name__} takes a step of its own for each "
                "element, for which the proximal operator of a penalty that is not separable has "
                "no closed form: use SGD, or delivery='step' (if it does act element by element, "
                "say separable = True)"
            )

    @hookimpl
    def on_loss(self, session: "Session") -> torch.Tensor | None:
        """Return the penalty as a term of the loss, unless it is delivered elsewhere."""
        if self._settled not in (None, "loss") or not self.active:
            return None
        weights, factors = [], []
        for entry in session.coverage(self._selection).trainable:
            weights.append(entry.parameter)
            factors.append(optimizers.sign(session.groups[entry.group_index]) * self.strength)
        if not weights:
            return None
        term: torch.Tensor = _LossTerm.apply(self, factors, *weights)  # type: ignore[no-untyped-call]
        return term

    @hookimpl
    def on_gradients(self, session: "Session") -> None:
        """Add the gradient to ``.grad``, if that is the delivery."""
        if self._settled != "step" and self._settle(session) != "step":
            return
        if not self.active:
            return
        scale = self.strength * session.gradient_scale
        for index, weights, gradients in session.updates(self._selection):
            factor = scale * optimizers.sign(session.groups[index])
            if not self._told_rounding:
                self._tell_rounding(session, weights, gradients, factor)
            try:
                if self.separable:
                    self._add_separable(gradients, weights, factor)
                else:
                    self._add_whole(gradients, weights, factor)
            except RuntimeError as error:
                if any(g.layout != torch.strided for g in gradients):
                    raise UnsupportedError(
                        f"{self.name}: a gradient is sparse, to which no dense gradient can be "
                        "added: exclude that parameter, or use delivery='proximal'"
                    ) from error
                raise

    @hookimpl
    def on_closure(self, session: "Session") -> torch.Tensor | None:
        """Return the value whose gradient was added, for a line search."""
        if self._settled != "step" or not self.active:
            return None
        weights: list[torch.Tensor] = []
        factors: list[float] = []
        for index, of_group, _ in session.updates(self._selection):
            weights += of_group
            factors += [self.strength * optimizers.sign(session.groups[index])] * len(of_group)
        return self._total(weights, factors) if weights else None

    @hookimpl
    def after_step(self, session: "Session") -> None:
        """Apply the proximal operator, if that is the delivery."""
        if self._settled != "proximal" or not self.active:
            return
        rule = session.update_rule()
        for index, weights, gradients in session.updates(self._selection):
            group = session.groups[index]
            if not rule.elementwise:
                step = rule.step(group, {}, gradients[0])
                if self.separable:
                    for (pieces,) in batches([[distributed.local(w) for w in weights]]):
                        self.apply_proximal(pieces, [step] * len(pieces))
                else:
                    for w in weights:
                        self._proximal_whole(w, step)
                continue
            for w, g in zip(weights, gradients, strict=True):
                self._proximal_elementwise(session, rule, group, w, g)

    @hookimpl
    def on_metrics(self, session: "Session") -> Mapping[str, Any]:
        """Return value (strength included), strength and share of exact zeros."""
        entries = session.coverage(self._selection).trainable
        weights = session.coverage(self._selection).weights
        values = [(e.parameter, self._value(e.parameter)) for e in entries]
        zeros = [(e.parameter, _zeros(distributed.local(e.parameter))) for e in entries]
        strengths = self.strengths()
        factor = strengths.get("strength", 1.0)
        if self.separable:
            value: Any = distributed.Sum(values, factor=factor)
        else:
            value = sum(v.double() for _, v in values) * factor
        return {
            "value": value,
            **strengths,
            "zeros": distributed.Sum(zeros, factor=1 / max(weights, 1)),
        }

    # --- inside ---------------------------------------------------------------------------

    def _settle(self, session: "Session") -> str:
        if self._settled is None:
            self._settled = "loss" if session.gradients_through_loss else "step"
        elif self._settled == "loss" and not session.gradients_through_loss:
            raise RegplugError(
                f"{self.name} has delivery='loss', but no gradient came through the loss event: "
                "write `loss = session.loss(loss)` before `loss.backward()`, or use delivery='step'"
            )
        return self._settled

    def _add_separable(
        self, gradients: list[torch.Tensor], weights: list[torch.Tensor], factor: float
    ) -> None:
        gradients = [distributed.local(g) for g in gradients]
        weights = [distributed.local(w) for w in weights]
        for gs, ws in batches([gradients, weights]):
            self.add_gradient(gs, [_widened(w) for w in ws], factor)

    def _add_whole(
        self, gradients: list[torch.Tensor], weights: list[torch.Tensor], factor: float
    ) -> None:
        for g, w in zip(gradients, weights, strict=True):
            whole = self.gradient(_widened(distributed.full(w)))
            distributed.local(g).add_(distributed.part(whole, w), alpha=factor)

    def apply_proximal(
        self, weights: list[torch.Tensor], steps: "list[float | torch.Tensor]"
    ) -> None:
        """Replace each weight by its proximal point, in place; the lists are small batches.

        Override it where an in-place operation does better than a call of :meth:`proximal`.
        """
        for w, step in zip(weights, steps, strict=True):
            w.copy_(self.proximal(_widened(w), step))

    def _proximal_whole(self, w: torch.Tensor, step: "float | torch.Tensor") -> None:
        whole = self.proximal(_widened(distributed.full(w)), step)
        distributed.local(w).copy_(distributed.part(whole, w))

    def _proximal_elementwise(
        self,
        session: "Session",
        rule: optimizers.UpdateRule,
        group: optimizers.Group,
        w: torch.Tensor,
        g: torch.Tensor,
    ) -> None:
        assert session.optimizer is not None
        state = session.optimizer.state.get(w)
        if not state:
            return
        names = rule.tensors(group)
        columns = [distributed.local(t) for t in (w, g, *(state[name] for name in names))]
        if not self.separable:
            pieces = dict(zip(names, columns[2:], strict=True))
            step = rule.step(group, {**state, **pieces}, columns[1])
            self._proximal_whole(w, distributed.full(distributed.like(step, w)))
            return
        for pieces_of in batches([[column] for column in columns]):
            piece, gradient, *moments = (column[0] for column in pieces_of)
            moments = [_widened(moment) for moment in moments]
            step = rule.step(group, {**state, **dict(zip(names, moments, strict=True))}, gradient)
            self.apply_proximal([piece], [step])

    def _value(self, w: torch.Tensor) -> torch.Tensor:
        """Return the value of one parameter as a 0-d tensor, halves added up in float32.

        For a separable penalty and a sharded parameter it is the value of this rank's part.
        """
        if not self.separable:
            return self._scalar(self.value(_widened(distributed.full(w))))
        parts = [
            self._scalar(self.value(_widened(piece)))
            for ((piece,),) in batches([[distributed.local(w).detach()]])
        ]
        return torch.stack(parts).sum() if parts else torch.zeros((), device=w.device)

    def _total(self, weights: Sequence[torch.Tensor], factors: Sequence[float]) -> torch.Tensor:
        """Return Σ factor·value(w) over all shards: one collective, and only where there are any."""
        terms = [self._value(w) * f for w, f in zip(weights, factors, strict=True)]
        total = torch.stack([term.to(weights[0].device) for term in terms]).sum()
        if self.separable and any(distributed.is_sharded(w) for w in weights):
            sharded = distributed.Sum(zip(weights, terms, strict=True))
            total = total.new_tensor(distributed.resolve([sharded])[0])
        return total

    def _scalar(self, value: torch.Tensor) -> torch.Tensor:
        if not isinstance(value, torch.Tensor) or value.ndim != 0:
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else value
            raise PluginError(f"{self.name}: value(w) must return a 0-d tensor, got {shape!r}")
        return value

    def _tell_rounding(
        self,
        session: "Session",
        weights: list[torch.Tensor],
        gradients: list[torch.Tensor],
        factor: float,
    ) -> None:
        """Say once that half-precision gradients are too coarse for this strength, if they are."""
        for w, g in zip(weights, gradients, strict=True):
            g, w = distributed.local(g), distributed.local(w)
            if (
                g.dtype not in (torch.float16, torch.bfloat16)
                or not self.separable
                or not g.numel()
            ):
                continue
            wide = self.gradient(w.float()) * factor
            lost = ((g + wide).to(g.dtype) == g) & (wide != 0)
            if lost.sum() * 2 > (wide != 0).sum():
                warnings.warn(
                    f"{self.name}: most of what it adds rounds away in {g.dtype} gradients; keep "
                    "the weights in float32 (autocast does), or use a larger strength",
                    stacklevel=2,
                )
                break
        self._told_rounding = True

    def agreement(self, session: "Session") -> Mapping[str, Any]:
        """Return the settings, and what they come to in this model."""
        return {
            **super().agreement(session),
            "delivery": self._delivery,
            "covers": [entry.name for entry in session.coverage(self._selection)],
        }

    def acts(self, session: "Session") -> str:
        """Return the delivery, with what ``"auto"`` became."""
        if self._delivery == "auto":
            return f"{self._settled} (auto)" if self._settled else "auto"
        return self._delivery

    def covers(self, session: "Session") -> tuple[int, int] | None:
        """Return how many tensors and weights are covered."""
        coverage: Coverage = session.coverage(self._selection)
        return len(coverage.trainable), coverage.weights


def _widened(w: torch.Tensor) -> torch.Tensor:
    """Return halves in float32, in which sums and small strengths survive; others as they are."""
    w = w.detach()
    return w.float() if w.dtype in (torch.float16, torch.bfloat16) else w


def _zeros(w: torch.Tensor) -> torch.Tensor:
    return w.numel() - torch.count_nonzero(w.detach())


class _LossTerm(torch.autograd.Function):
    """Σ factor·value(w) with the gradient that the penalty states, right under create_graph.

    As one node of the graph it saves no intermediate results, and keeps ``DTensor`` gradients as
    such, so that it may be added to a plain loss.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, penalty: Penalty, factors: list[float], *weights: torch.Tensor
    ) -> torch.Tensor:
        ctx.penalty, ctx.factors = penalty, factors
        ctx.save_for_backward(*weights)
        return penalty._total(weights, factors)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:
        (upstream,) = outputs
        penalty: Penalty = ctx.penalty
        gradients = []
        for factor, w in zip(ctx.factors, ctx.saved_tensors, strict=True):
            if torch.is_grad_enabled():
                gradients.append(penalty.gradient(w) * (factor * upstream))
                continue
            if penalty.separable:
                gradient = penalty.gradient(_widened(distributed.local(w)))
            else:
                gradient = distributed.part(penalty.gradient(_widened(distributed.full(w))), w)
            gradient = (gradient * (factor * upstream)).to(w.dtype)
            gradients.append(distributed.like(gradient, w))
        return None, None, *gradients
