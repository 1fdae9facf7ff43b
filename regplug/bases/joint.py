"""A regularizer of several parameters together: :class:`JointPenalty`."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch

from regplug.backend.groups import sign
from regplug.backend.precision import widened
from regplug.backend.shards import full, local, part
from regplug.bases.delivered import Delivered
from regplug.delivery import jointly
from regplug.delivery.refused import refuse_sparse_gradients
from regplug.errors import PluginError, RegplugError, SelectionError, SpecError, UnsupportedError
from regplug.hookspecs import hookimpl
from regplug.schedules import ScheduleLike
from regplug.selection.coverage import Coverage
from regplug.selection.where import Where
from regplug.view import SessionView

__all__ = ["JointPenalty"]


class JointPenalty(Delivered):
    r"""A term ``strength · Σ value(*ws)`` of the objective, over groups of parameters.

    A subclass yields tuples of parameters that belong together (:meth:`groups`), and writes
    :meth:`value` of such a tuple. It is given whole parameters, halves in float32: sharded ones
    are gathered, a collective each. The gradient is autograd's.

    The gradient goes to what this session covers: what ``where`` selects of this optimizer's
    parameters. The others of a group (frozen ones, those of another optimizer, excluded ones) are
    constants; at the step those whose ``.grad`` is None are, too. A group of constants alone
    counts for nothing. A parameter may be in several groups, and twice in one, as tied ones are.

    Args:
        strength: λ, a finite number ≥ 0 or a schedule of the step count.
        where: the parameters, see :class:`regplug.selection.where.Selection`.
        delivery: ``"auto"``, ``"loss"`` or ``"step"``, see :class:`regplug.Penalty`; and
            ``"proximal"`` if there is a :meth:`proximal`.
        name: the key of its state and metrics, where one session has two of a kind.

    Raises:
        SpecError: ``strength`` is negative or not finite, or ``delivery`` is none of these.
        SelectionError: ``where`` is no selection, or there is no group with a parameter of it.

    Two layers that are to stay alike:

    >>> import regplug, torch
    >>> class Alike(regplug.JointPenalty):
    ...     "λ·‖W₁ − W₂‖²"
    ...     def groups(self, session):
    ...         yield session.model[0].weight, session.model[1].weight
    ...     def value(self, first, second):
    ...         return (first - second).square().sum()
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> session = regplug.attach(model, optimizer, [Alike(1e-3)])
    >>> print(session.plugins[0].name, session.plugins[0].covers(session))
    alike (2, 18)
    """

    separable = False
    orientation = None
    elementwise_steps = False
    composition = None
    by_pattern = False  # a group may have members of several parts

    _groups: Sequence[tuple[torch.Tensor, ...]] = ()
    _bound: object = None

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

    # --- the formula ----------------------------------------------------------------------

    def groups(self, session: SessionView) -> Iterable[tuple[torch.Tensor, ...]]:
        """Yield tuples of parameters of ``session.model``, as its modules have them.

        Asked at attach, and again when the optimizer's parameters are others than before.
        """
        raise NotImplementedError(f"{type(self).__name__} must define groups(session)")

    def value(self, *ws: torch.Tensor) -> torch.Tensor:
        """Return the penalty of one group, a 0-d tensor, differentiable, without λ."""
        raise NotImplementedError(f"{type(self).__name__} must define value(*ws)")

    def factor(self, *parameters: torch.Tensor) -> float:
        """Return what the value of a group is multiplied by: 1, unless overridden.

        Given the parameters themselves, so that it may tell one group from another.
        """
        return 1.0

    def proximal(self, step: float, *ws: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return argmin over us of ``½Σ‖u − w‖²/step + λ·value(*us)``, one for each of ``ws``."""
        raise NotImplementedError(f"{type(self).__name__} has no proximal operator")

    # --- what deliveries ask --------------------------------------------------------------

    def _settle_formula(self, coverage: Coverage) -> None:
        if coverage.apart:
            raise UnsupportedError(
                f"{self.name}: DeepSpeed's ZeRO trains slices of the weights, of which groups of "
                "whole ones can't be made: use DDP or FSDP2"
            )

    def _check_has_operator(self) -> None:
        if type(self).proximal is JointPenalty.proximal:
            raise SpecError(
                f"delivery='proximal': {type(self).__name__} has no proximal operator; use 'step' "
                "or 'loss'"
            )

    def idle(self, session: SessionView) -> Collection[str]:
        """Return the events of deliveries that are not its own, but for hooks written anew."""
        return self._idle(session, JointPenalty)

    def _known(self, session: SessionView) -> Sequence[tuple[torch.Tensor, ...]]:
        """Return the groups in which anything is covered, each once."""
        coverage = session.coverage(self._selection)
        if coverage is not self._bound:
            ours = {id(entry.parameter) for entry in coverage}
            found: dict[tuple[int, ...], tuple[torch.Tensor, ...]] = {}
            for group in self.groups(session):
                members = (group,) if isinstance(group, torch.Tensor) else tuple(group)
                if any(id(w) in ours for w in members):
                    found.setdefault(tuple(map(id, members)), members)
            self._groups, self._bound = list(found.values()), coverage
            self._check_signs(session, coverage)
        return self._groups

    def _active(self, session: SessionView) -> list[tuple[torch.Tensor, ...]]:
        """Return those of which a member is trained now."""
        trained = {id(e.parameter) for e in session.coverage(self._selection).trainable}
        return [group for group in self._known(session) if any(id(w) in trained for w in group)]

    def _check_signs(self, session: SessionView, coverage: Coverage) -> None:
        signs = {id(e.parameter): sign(session.groups[e.group_index]) for e in coverage}
        for group in self._groups:
            if len({signs[id(w)] for w in group if id(w) in signs}) > 1:
                raise UnsupportedError(
                    f"{self.name}: parameters that belong together are minimized and maximized "
                    "(maximize=True of some of the optimizer's groups): exclude one of them"
                )

    def _terms(self, session: SessionView) -> list[tuple[float, tuple[torch.Tensor, ...]]]:
        """Return each group with what its value is multiplied by: all but λ."""
        coverage = session.coverage(self._selection)
        signs = {id(e.parameter): sign(session.groups[e.group_index]) for e in coverage}
        return [
            (next(signs[id(w)] for w in group if id(w) in signs) * self.factor(*group), group)
            for group in self._active(session)
        ]

    def _checked(self, *group: torch.Tensor) -> torch.Tensor:
        """Return the value of a group of plain, whole tensors."""
        found = self.value(*group)
        if not isinstance(found, torch.Tensor) or found.ndim:
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else found
            raise PluginError(f"{self.name}: value(*ws) must return a 0-d tensor, got {shape!r}")
        return found

    # --- events ---------------------------------------------------------------------------

    @hookimpl
    def on_attach(self, session: SessionView) -> None:
        """Find the groups, and check what every penalty checks."""
        self._bound = None
        super().on_attach(session)
        if not self._active(session) and not session.coverage(self._selection).lazy:
            raise SelectionError(f"{self.name}: {self.nothing_found(session)}")

    def nothing_found(self, session: SessionView) -> str:
        """Return what to say of a model in which no group has a parameter that is covered."""
        names = session.coverage(self._selection).names
        return (
            f"where={self.where!r} covers {', '.join(names[:6])}, and none of the groups has any "
            "of these"
        )

    @hookimpl
    def on_loss(self, session: SessionView) -> Any:
        """Return the penalty as a term of the loss, unless it is delivered elsewhere."""
        if self._settled not in (None, "loss") or not (strength := self._strength_now()):
            return None
        covered = {id(e.parameter) for e in session.coverage(self._selection).trainable}
        terms = [
            strength * factor * jointly.value(self.name, self._checked, group, covered)
            for factor, group in self._terms(session)
        ]
        return torch.stack([t.to(terms[0]) for t in terms]).sum() if terms else None

    @hookimpl
    def on_gradients(self, session: SessionView) -> None:
        """Add the gradient to ``.grad``, if that is the delivery."""
        if self._settled != "step" and self._settle(session) != "step":
            return
        if not (strength := self._strength_now()):
            return
        taking = {
            id(w): (w, g)
            for _, weights, gradients in session.updates(self._selection)
            for w, g in zip(weights, gradients, strict=True)
        }
        for factor, group in self._terms(session):
            if not any(id(w) in taking for w in group):
                continue
            scale = strength * factor * session.gradient_scale
            for key, gradient in jointly.gradients(self._checked, group, taking).items():
                w, g = taking[key]
                try:
                    local(g).add_(part(gradient, w), alpha=scale)
                except RuntimeError as error:
                    refuse_sparse_gradients(self.name, [g], error)
                    raise

    @hookimpl
    def on_closure(self, session: SessionView) -> "torch.Tensor | float | None":
        """Return the value whose gradient was added, for a line search."""
        if self._settled != "step" or not (strength := self._strength_now()):
            return None
        return strength * self._total(self._terms(session))

    @hookimpl
    def after_step(self, session: SessionView) -> None:
        """Apply the proximal operator, if that is the delivery."""
        if self._settled != "proximal" or not self.active:
            return
        rule, groups = session.update_rule(), session.groups
        steps = {
            id(w): rule.step(groups[index], {}, gradients[0])
            for index, weights, gradients in session.updates(self._selection)
            for w in weights
        }
        for group in self._known(session):
            own = [steps[id(w)] for w in group if id(w) in steps]
            if not own:
                continue
            if len(own) < len(group) or len(set(own)) > 1:
                raise RegplugError(
                    "the proximal operator is of a whole group, whose parameters are to take part "
                    "in the step together, with one learning rate: use delivery='step'"
                )
            moved = self.proximal(own[0], *(widened(full(w).detach()) for w in group))
            for w, whole in zip(group, moved, strict=True):
                local(w).copy_(part(whole, w))

    def _total(
        self, terms: Iterable[tuple[float, tuple[torch.Tensor, ...]]]
    ) -> torch.Tensor | float:
        values: list[torch.Tensor] = []
        with torch.no_grad():
            for factor, group in terms:
                whole = [widened(full(w).detach()) for w in group]
                values.append(factor * self._checked(*whole))
        return torch.stack([v.to(values[0]) for v in values]).sum() if values else 0.0

    @hookimpl
    def on_metrics(self, session: SessionView) -> Mapping[str, Any]:
        """Return value (strength included) and strength."""
        strengths = self.strengths()
        plain = ((self.factor(*group), group) for group in self._active(session))
        value = self._total(plain) * strengths.get("strength", 1.0)
        return {"value": value, **strengths}

    @hookimpl
    def on_detach(self, session: SessionView) -> None:
        """Let go of the parameters."""
        self._groups, self._bound = (), None

    # --- what is told ---------------------------------------------------------------------

    def acted_on(self, session: SessionView) -> Coverage:
        """Return what is covered of the groups."""
        members = {id(w) for group in self._known(session) for w in group}
        selected = session.coverage(self._selection)
        ours = [entry for entry in selected if id(entry.parameter) in members]
        return Coverage(ours, selected.lazy, selected.where)

    def executed(self, session: SessionView) -> Sequence[str]:
        """Return how many groups there are, and that autograd does it."""
        count = len(self._active(session))
        return [f"{count} group{'' if count == 1 else 's'} of parameters that belong together"]
