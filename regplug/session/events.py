"""The steps of one session: what its step hooks call, which fires the events and counts them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from regplug.backend import step_events, wrapped
from regplug.backend.gradmode import without_grad
from regplug.backend.precision import as_outside
from regplug.plugin import Plugin, set_steps
from regplug.session.agreement import Ranks
from regplug.session.binding import Binding
from regplug.session.calls import Calls, is_number
from regplug.session.silence import Silence
from regplug.view import SessionView

if TYPE_CHECKING:
    from regplug.session.own_weights import Copies

__all__ = ["Events"]


class Events:
    """Fires the step events of one session: the listener of :class:`StepEvents`.

    Args:
        session: whose events they are. It is let go of by :meth:`end`.
        plugins: its plugins.
        optimizer: the torch optimizer, unwrapped, or None.
        calls: calls the plugins.
        binding: the parameters.
        silence: looks for loops in which nothing acts.
        ranks: the other ranks.
        copies: looks at the first step whether the optimizer keeps weights of its own.

    Attributes:
        steps: completed real steps.
        watchers: called after each real step.
        noters: called with what the loop notes.
        once_updated: called once, right after the update of the step that is under way.
    """

    def __init__(
        self,
        session: SessionView,
        plugins: Sequence[Plugin],
        optimizer: Optimizer | None,
        *,
        calls: Calls,
        binding: Binding,
        silence: Silence,
        ranks: Ranks,
        copies: "Copies | None",
    ) -> None:
        self.steps = 0
        self.watchers: tuple[Callable[[Any], object], ...] = ()
        self.noters: tuple[Callable[[Any], object], ...] = ()
        self.once_updated: list[Callable[[], object]] = []
        self._session: SessionView | None = session
        self._plugins, self._optimizer = plugins, optimizer
        self._calls, self._binding, self._silence, self._ranks = calls, binding, silence, ranks
        self._copies = copies  # None after the first step
        self._doubt: wrapped.Doubt | None = None
        self._remembers = optimizer is None or not step_events.is_torchs(optimizer)
        self._unscale = optimizer is not None and any(
            not getattr(plugin, "scaled_gradients", False)
            for plugin in calls.listeners("on_gradients")
        )

    def doubt(self, optimizer: object, inner: Optimizer) -> None:
        """Look until the first step whether a wrapper does pass its step on to ``inner``."""
        self._doubt = wrapped.Doubt(optimizer, inner)

    def settle_doubt(self) -> None:
        """Look no more."""
        if self._doubt is not None:
            self._doubt.settle()
            self._doubt = None

    def end(self) -> None:
        """Fire no more, from the very event on that is at work. May be called twice."""
        self.watchers = self.noters = ()
        self._session = None

    # --- what the hooks call ---------------------------------------------------------------

    def gradients_ready(self) -> None:
        """Fire on_gradients."""
        session = self._session
        if session is None:
            return
        if self.once_updated:  # of an update that failed
            self._call_once_updated()
        calls, binding = self._calls, self._binding
        if calls.at_steps or self.watchers:
            binding.bind(session)
        else:
            binding.fresh = False
        if not self._ranks.compared:
            self._ranks.compare_late(session)
        if self._unscale:
            assert self._optimizer is not None
            step_events.unscale_gradients(self._optimizer)
        if binding.of_meshes:  # at every step, for buffers that begin as a gradient's copy
            binding.place_gradients()
        if "on_gradients" in calls.busy:
            calls.fire("on_gradients", session)
        if self._remembers and "after_step" in calls.busy:
            binding.remember()

    def no_gradients(self) -> None:
        """Nothing will happen in this step; say so if nothing ever can."""
        self._binding.check()
        if self._optimizer is not None and not self.steps:
            step_events.check_not_in_backward(self._optimizer, hooked=True)

    @as_outside
    def closure_value(self) -> float:
        """Return the value of the penalties added to a closure's gradients."""
        session = self._session
        self._silence.evaluated()
        if session is None:
            return 0.0
        terms = self._calls.all("on_closure", session)
        if not all(map(is_number, terms)):
            self._calls.refuse_returned(is_number, "on_closure", session)
        return float(sum(float(term) for term in terms))

    def closure_begins(self) -> None:
        """A step with a closure begins."""
        if self._copies is not None:
            self._copies.closure_begins(self._binding.owned())

    def before_update(self) -> None:
        """Fire before_step."""
        if self._copies is not None:
            self._copies.before_decay()
        if "before_step" in self._calls.busy and self._session is not None:
            self._calls.fire("before_step", self._session)
        if self._copies is not None:
            self._copies.before_update(self._binding.owned())

    def after_update(self) -> None:
        """Fire after_step, then count the step."""
        session = self._session
        if self.once_updated:
            self._call_once_updated()
        if self._copies is not None:
            self._copies.after_update()
            self._copies = None
        if "after_step" in self._calls.busy and session is not None:
            self._calls.fire("after_step", session)
        self._binding.taking = None
        self.advance_to(self.steps + 1)
        if session is None:
            return
        if self._silence.waiting is not None:
            self.settle_doubt()
            self._calls.settle(session)
        self._silence.stepped(session)
        for callback in self.watchers:
            if self._session is not None:  # the one before may have detached it
                without_grad(callback, session)

    def _call_once_updated(self) -> None:
        while self.once_updated:  # one that is interrupted is called again at the next step
            self.once_updated[-1]()
            self.once_updated.pop()

    def advance_to(self, steps: int) -> None:
        """Set the step count, and that of each plugin."""
        try:
            self.steps = steps
            set_steps(self._plugins, steps)
        except BaseException:  # interrupted, which must not leave plugins at different steps
            self.steps = steps
            set_steps(self._plugins, steps)
            raise
