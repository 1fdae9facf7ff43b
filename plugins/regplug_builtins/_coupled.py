"""A penalty whose gradient is a multiple of w is left to the optimizer's own weight_decay."""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch

from regplug import (
    HALVES,
    Coverage,
    Penalty,
    SessionView,
    called_by_a_graph,
    hookimpl,
    lent,
    sessions,
)
from regplug.schedules import constant
from regplug_builtins._left import hears, taking

__all__ = ["Coupled"]

_layout = attrgetter("layout")
_STRIDED = {torch.strided}
# Whose own weight_decay is an addition to the gradient that they use, as read in each source.
_KINDS = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Adamax,
    torch.optim.ASGD,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
)


class Coupled(Penalty):
    """Leaves whole parameter groups to the optimizer's update, where that comes to the same.

    For the time of a step the group's ``weight_decay`` is raised, so that the gradient that the
    optimizer uses is that of the penalty too, at no pass over memory; ``.grad`` does not show it.
    """

    _may_hand_over = True
    multiple = 0.0
    """c, for a gradient of c·w."""

    _left: tuple[int, ...] = ()  # the indices of groups that may be left to the optimizer
    _known: Coverage | None = None  # for which they were found, among these sessions
    _sessions = -1
    _told: bool = False
    _lent: Sequence[lent.Loan] = ()
    _loans: Mapping[int, lent.Loan] = {}
    _undo: Sequence[Callable[[], None]] = ()

    # No on_attach of its own: what acts on many models at once takes a formula and nothing else.

    @hookimpl
    def on_detach(self, session: SessionView) -> None:
        """Give back what an update that failed has left."""
        self._take_back()
        for undo in self._undo:
            undo()
        self._undo, self._loans, self._known, self._told = (), {}, None, False
        self._may_hand_over = True

    def hands_over(
        self,
        session: SessionView,
        update: tuple[int, list[torch.Tensor], list[torch.Tensor]],
    ) -> bool:
        """Have the optimizer add the gradient of a group in its update, if it can."""
        index, weights, gradients = update
        if self._sessions != sessions.changes() or (
            session.coverage(self._selection) is not self._known
        ):
            self._find(session)
        if index not in self._left:
            return False
        group = session.groups[index]
        if not _would_add(group, weights, gradients):
            return False
        # A compiled update would be compiled anew for each number of this kind.
        if called_by_a_graph() and type(type(self).strength.schedule(self)) is not constant:
            return False
        if not self._told:
            # The first step says so if it rounds away.
            self._told = True
            if not group.get("fused") and any(w.dtype in HALVES for w in weights):
                return False
        self._lend(session, index, group)
        return True

    def _lend(self, session: SessionView, index: int, group: dict[str, Any]) -> None:
        optimizer = session.optimizer
        assert optimizer is not None
        if not self._undo:
            states = [optimizer, *lent.around(optimizer)]
            self._undo = [lent.keep_in_states(each) for each in states]
        raised = group["weight_decay"] + self.multiple * self.strength
        loan = lent.lend(group, "weight_decay", raised, self._loans.get(index))
        self._loans = {**self._loans, index: loan}
        if not self._lent:
            session.once_updated(self._take_back)
        self._lent = (*self._lent, loan)

    def _take_back(self) -> None:
        """Set back the groups: between steps they, and what is saved of them, are the user's."""
        while self._lent:
            lent.pay_back(self._lent[-1])
            self._lent = self._lent[:-1]

    # --- which groups ----------------------------------------------------------------------

    def _find(self, session: SessionView) -> None:
        """Find the groups that may be left to the optimizer."""
        self._sessions = sessions.changes()
        self._known = coverage = session.coverage(self._selection)
        self._left, self._may_hand_over = (), False  # asked no more, until describe() looks again
        if self._settled == "proximal" or not session.handover or session.kernels == "foreach":
            return
        optimizer = session.optimizer
        if type(optimizer) not in _KINDS or self._is_another() or self._is_seen(session):
            return
        self._left = tuple(
            index
            for index, covered in coverage.by_group.items()
            if _may_be_left(session.groups[index], covered) and self.is_uniform(session, covered)
        )
        self._may_hand_over = bool(self._left)

    def _is_another(self) -> bool:
        """Whether a subclass, or somebody on the instance, made anything else of it."""
        cls, own = type(self), vars(self)
        known = Coupled.__subclasses__()
        return cls not in known or any(callable(getattr(cls, name, None)) for name in own)

    def _is_seen(self, session: SessionView) -> bool:
        """Whether other plugins may miss the gradient, or change the weights before the update."""
        plugins = session.plugins
        others = [plugin for plugin in plugins if plugin is not self]
        after = [plugin for other in sessions.after(session) for plugin in other.plugins]
        beside = [
            plugin
            for other in sessions.on(session.optimizer)
            if other is not session
            for plugin in other.plugins
        ]
        later = [*plugins[plugins.index(self) + 1 :], *after]
        # Adadelta's proximal step is computed from the gradient.
        adadelta = type(session.optimizer) is torch.optim.Adadelta
        return (
            any(hears(plugin, "before_step") for plugin in [*others, *after])
            or any(plugin.sees_gradients("on_gradients") for plugin in later)
            or any(
                plugin.sees_gradients("after_step") or (adadelta and hears(plugin, "after_step"))
                for plugin in [*others, *beside]
            )
        )

    def executed(self, session: SessionView) -> Sequence[str]:
        """Return by what kernels, unless the optimizer does it."""
        return [] if self._is_left(session) else super().executed(session)

    def acts(self, session: SessionView) -> str:
        """Return the delivery, or that the optimizer does it."""
        if self._is_left(session):
            return f"the update of {type(session.optimizer).__name__} itself"
        return super().acts(session)

    def _is_left(self, session: SessionView) -> bool:
        """Whether all of it is left to the optimizer."""
        # What is asked after detach is a copy, of how things were.
        if self in session.plugins and self._sessions != sessions.changes():
            self._find(session)
        whole = len(self._left) == len(session.coverage(self._selection).by_group)
        return self._settled == "step" and bool(self._left) and whole


def _may_be_left(group: Mapping[str, Any], covered: Sequence[torch.Tensor]) -> bool:
    """Whether a group is covered whole, but for what is frozen, and its decay is a plain number."""
    trainable, own = (sum(p.requires_grad for p in each) for each in (group["params"], covered))
    return own == trainable and not (
        group.get("decoupled_weight_decay") or group.get("differentiable")
    )


def _would_add(
    group: Mapping[str, Any], weights: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]
) -> bool:
    """Whether the update would add just this to just these gradients."""
    if not isinstance(group.get("weight_decay"), int | float):
        return False  # a tensor, which is on a device
    # What is frozen with a gradient left is updated too.
    count = len(weights)
    if count != len(group["params"]) and count != taking(group):
        return False
    return set(map(_layout, gradients)) == _STRIDED
