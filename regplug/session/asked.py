"""What a session answers: to the hooks of its plugins, and to whoever watches its steps."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.optim import Optimizer

from regplug.backend.gradmode import without_grad
from regplug.backend.groups import Group, learning_rate
from regplug.selection.coverage import Coverage
from regplug.selection.where import Selection
from regplug.session.agreement import Ranks
from regplug.session.binding import Binding
from regplug.session.calls import Calls
from regplug.session.events import Events
from regplug.session.loss_event import LossEvent
from regplug.view import SessionView

if TYPE_CHECKING:
    from regplug.backend.update_rules import UpdateRule

__all__ = ["Asked"]


class Asked:
    """The side of a session that hooks and watchers see. Its parts are made by the session."""

    optimizer: Optimizer | None
    stateful: Any
    _binding: Binding
    _loss: LossEvent
    _steps: Events
    _calls: Calls
    _ranks: Ranks
    _detached: bool

    @property
    def steps(self) -> int:
        """Completed real steps."""
        return self._steps.steps

    @property
    def gradients_through_loss(self) -> bool:
        """Whether a backward pass came through :meth:`loss` yet."""
        return self._loss.gradients_through_it

    @property
    def groups(self) -> list[Group]:
        """The parameter groups of whatever updates, or one for a loop without optimizer."""
        binding = self._binding
        return binding.groups if binding.plain is None else binding.plain.param_groups

    @property
    def gradient_scale(self) -> float:
        """What gradients are still multiplied by in on_gradients, not 1 for fused ones alone."""
        scale = getattr(self.optimizer, "grad_scale", None)
        return 1.0 if scale is None else float(scale)

    def coverage(self, selection: Selection) -> Coverage:
        """Return what ``selection`` covers of this optimizer's parameters.

        It is kept until the optimizer's parameters change, so the object tells whether they did.

        Raises:
            SelectionError: it covers nothing; the message shows what there is.
        """
        if not self._binding.fresh:
            self._binding.bind(cast(SessionView, self))
        return self._binding.coverage(selection)

    def updates(
        self, selection: Selection
    ) -> Iterator[tuple[int, list[torch.Tensor], list[torch.Tensor]]]:
        """Yield (group index, weights, gradients) of what takes part in this step, for each group.

        Frozen parameters, and those whose ``.grad`` is None before the update, take no part; the
        update itself may clear it. Under FSDP2 and tensor parallelism the tensors are ``DTensor``,
        each gradient placed as its weight is: :func:`regplug.local` gives this rank's part.

        Args:
            selection: which parameters, made once: ``regplug.Selection("weights")``.
        """
        if not self._binding.fresh:
            self._binding.bind(cast(SessionView, self))
        return self._binding.updates(selection)

    def learning_rate(self, group_index: int) -> Any:
        """Return the learning rate of a group, as the optimizer itself keeps it.

        Args:
            group_index: as :meth:`updates` yields it.

        Raises:
            RegplugError: it is not known: ``with session.step():`` was given none.
        """
        return learning_rate(self.groups[group_index])

    def update_rule(self) -> "UpdateRule":
        """Return what the optimizer multiplies a gradient by, for proximal steps.

        Raises:
            UnsupportedError: the optimizer is not known; by name.
        """
        return self._binding.update_rule()

    def after_each_step(self, callback: Callable[[Any], object]) -> Callable[[], None]:
        """Call ``callback(session)`` after each real step, once it is counted, with grad off.

        For whoever watches a loop, as :class:`regplug.report.Recorder` does; what acts on the
        weights is a plugin.

        Returns:
            A function that undoes it. Detaching the session undoes it too.
        """
        events = self._steps
        events.watchers += (callback,)

        def undo() -> None:
            events.watchers = tuple(kept for kept in events.watchers if kept is not callback)

        return undo

    def note(self, **values: Any) -> None:
        """Tell what the loop has measured, to plugins that ask (``on_note``) and to recorders.

        Whatever it is called: ``session.note(loss=…, val_loss=…)``. A recorder writes down what is
        a single number. Where ranks train one model together and a plugin asks, all of them note
        the same values: what each has measured of its own data is to be averaged before.

        Args:
            values: numbers or tensors, mostly. Tensors are detached, and read by those alone who
                ask for their numbers.

        Raises:
            RegplugError: the ranks noted different values.
            SpecError: a recorder has a column of that name already.
            PluginError: a plugin raised.

        >>> import torch, regplug
        >>> session = regplug.attach(torch.nn.Linear(2, 1), plugins=["l2(0.1)"])
        >>> session.note(val_loss=0.25)
        """
        if self._detached:
            return
        plain = {
            name: value.detach() if isinstance(value, torch.Tensor) else value
            for name, value in values.items()
        }
        session = cast(SessionView, self)
        if self._calls.listeners("on_note"):
            self._ranks.compare_note(plain)
            without_grad(self._tell_note, session, plain)
        for callback in self._steps.noters:
            callback(plain)

    def _tell_note(self, session: SessionView, values: Mapping[str, Any]) -> None:
        self._calls.all("on_note", session, values=values)

    def after_each_note(
        self, callback: Callable[[Mapping[str, Any]], object]
    ) -> Callable[[], None]:
        """Call ``callback(values)`` after each :meth:`note`, for whoever writes them down.

        Returns:
            A function that undoes it. Detaching the session undoes it too.
        """
        events = self._steps
        events.noters += (callback,)

        def undo() -> None:
            events.noters = tuple(kept for kept in events.noters if kept is not callback)

        return undo

    def once_updated(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` once, right after the update of the step that is under way.

        Before ``after_step`` fires, so that what a plugin lent to the optimizer for its update is
        taken back before anyone else looks, or fails. Where the update itself fails it is called
        when the next step begins: whoever lends takes back in ``on_detach`` too.
        """
        self._steps.once_updated.append(callback)

    # --- events by hand --------------------------------------------------------------------

    def gradients_ready(self) -> None:
        """Fire on_gradients, as the hooks of an optimizer do."""
        self._steps.gradients_ready()

    def before_update(self) -> None:
        """Fire before_step, as the hooks of an optimizer do."""
        self._steps.before_update()

    def after_update(self) -> None:
        """Fire after_step and count the step, as the hooks of an optimizer do."""
        self._steps.after_update()
