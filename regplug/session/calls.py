"""The plugins of one session as they are called: in order, each failure with its culprit's name."""

import traceback
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

import pluggy
import torch

from regplug.backend import stack
from regplug.backend.gradmode import grad_off, grad_on
from regplug.backend.precision import as_outside
from regplug.errors import failure
from regplug.plugin import Plugin
from regplug.session import traced
from regplug.session.contract import EVENTS, managed
from regplug.view import SessionView

__all__ = ["Calls", "described", "is_number", "is_scalar"]

# Those in which a plugin acts on a loop, and not just answers its session.
_LOOP = ("on_loss", "on_gradients", "on_closure", "before_step", "after_step")
_AT_STEPS = {"on_gradients", "before_step", "after_step"}


class Calls:
    """Calls hooks, by a pluggy manager of the session's own.

    Args:
        plugins: in the order in which they are to be called.
        tell: is given each failure before it is raised.

    Attributes:
        busy: the events in which any plugin has something to do.
        at_steps: whether those of a step are among them.
        silent: whether nobody is called any more.

    Raises:
        PluginError: a plugin breaks the hook contract.
    """

    def __init__(self, plugins: Iterable[Plugin], tell: Callable[[Exception], None]) -> None:
        self._plugins = tuple(plugins)
        self._tell = tell
        self._manager = managed(self._plugins)
        callers = {event: getattr(self._manager.hook, event) for event in EVENTS}
        # Looked up once, since some fire at every step; left out where no plugin listens.
        self._callers: dict[str, pluggy.HookCaller] = {
            event: caller for event, caller in callers.items() if caller.get_hookimpls()
        }
        if traced.wanted():
            self._trace()
        # The functions to call for an event, where they are called directly: see settle().
        self._functions: dict[str, list[Callable[..., Any]]] = {}
        self.silent = False
        self.busy = set(self._callers)
        self.at_steps = True

    def _trace(self) -> None:
        for event, caller in self._callers.items():
            for impl in caller.get_hookimpls():
                if not (impl.wrapper or impl.hookwrapper):  # those are generators
                    who = getattr(impl.plugin, "name", "?")
                    told = traced.Traced(impl.function, impl.argnames, event, who)
                    impl.function = told  # type: ignore[misc]

    def settle(self, session: SessionView) -> None:
        """Leave out the plugins in the events in which they say that they have nothing to do.

        From here on an event is a call of the functions themselves, if its hooks are no more than
        functions: each takes the session alone, and none is a wrapper around the others. In a
        training loop, where it is cold code, pluggy's own call costs as much as a small penalty.
        """
        if self.silent:
            return
        idle = {id(plugin): plugin.idle(session) for plugin in self._plugins}
        for event, caller in self._callers.items():
            impls = caller.get_hookimpls()
            if any(i.argnames != ("session",) or i.wrapper or i.hookwrapper for i in impls):
                continue
            busy = [i.function for i in impls if event not in idle.get(id(i.plugin), ())]
            self._functions[event] = busy[::-1]
        self.busy = {event for event in self._callers if self._functions.get(event) != []}
        self.at_steps = not self.busy.isdisjoint(_AT_STEPS)

    def silence(self) -> None:
        """Call nobody any more in the events of a loop, from the very call on that is at work.

        A plugin may detach its session in any event, of which the rest is then no one's.
        """
        self.silent = True
        for event in _LOOP:
            self._functions.setdefault(event, []).clear()
            caller = self._callers.get(event)
            for impl in caller.get_hookimpls() if caller else ():
                if not (impl.wrapper or impl.hookwrapper):  # those are around the call already
                    impl.function = _nothing  # type: ignore[misc]
        self.busy = self.busy.difference(_LOOP)
        self.at_steps = False

    def listeners(self, event: str) -> list[Plugin]:
        """Return the plugins that implement ``event``."""
        caller = self._callers.get(event)
        listening = {id(impl.plugin) for impl in caller.get_hookimpls()} if caller else set()
        return [plugin for plugin in self._plugins if id(plugin) in listening]

    @as_outside
    def fire(self, event: str, session: SessionView) -> None:
        """Call every plugin that has something to do in an event of a step, with grad off."""
        functions = self._functions.get(event)
        restore = grad_on if torch.is_grad_enabled() else grad_off
        try:
            grad_off()
            if functions is None:
                self._callers[event](session=session)
            else:
                for function in functions:
                    function(session)
            restore()
        except BaseException as error:  # an interruption may strike at the first try to restore
            restore()
            if isinstance(error, Exception):
                self.blame(error, event, session)
            raise

    def all(self, event: str, session: SessionView, **arguments: Any) -> list[Any]:
        """Call every plugin and return what they returned, but for None."""
        caller = self._callers.get(event)
        if caller is None:
            return []
        functions = self._functions.get(event)
        try:
            if functions is None:
                returned: list[Any] = caller(session=session, **arguments)
            else:
                returned = [value for f in functions if (value := f(session)) is not None]
        except Exception as error:
            self.blame(error, event, session)
        return returned

    def one(self, plugin: Plugin, event: str, session: SessionView, **arguments: Any) -> Any:
        """Call one plugin and return what it returned."""
        others = [other for other in self._plugins if other is not plugin]
        caller = self._manager.subset_hook_caller(event, others)
        try:
            returned = caller(session=session, **arguments)
        except Exception as error:
            self.blame(error, event, session, plugin)
        return returned[0] if returned else None

    def mapping(self, plugin: Plugin, event: str, session: SessionView) -> Mapping[str, Any]:
        """Call one plugin that must return a mapping or None, and return the mapping."""
        returned = self.one(plugin, event, session)
        if returned is not None and not isinstance(returned, Mapping):
            wrong = f"it must return a mapping or None, got {described(returned)}"
            self.blame(TypeError(wrong), event, session, plugin)
        return returned or {}

    def refuse_returned(
        self, is_right: Callable[[Any], bool], event: str, session: SessionView, **arguments: Any
    ) -> None:
        """Find the plugin whose hook returned what it must not, by asking each again."""
        for plugin in self._plugins:
            returned = self.one(plugin, event, session, **arguments)
            if returned is not None and not is_right(returned):
                wrong = f"it must return a 0-d tensor or None, got {described(returned)}"
                self.blame(TypeError(wrong), event, session, plugin)

    def blame(
        self, error: Exception, event: str, session: SessionView, plugin: Plugin | None = None
    ) -> None:
        """Raise ``error`` with the name of the plugin that it comes from.

        Without ``plugin`` it is the one on the traceback: at no cost until it is needed.
        """
        plugin = plugin or self._culprit(error, event)
        named = error
        if plugin is not None:
            named = failure(error, plugin.name, plugin.source, event, session.steps)
        self._tell(named)
        if named is error:
            raise error
        raise named from error

    def _culprit(self, error: BaseException, event: str) -> Plugin | None:
        by_instance = {id(plugin): plugin for plugin in self._plugins}
        caller = self._callers.get(event)
        by_code = {
            getattr(impl.function, "__code__", None): by_instance.get(id(impl.plugin))
            for impl in (caller.get_hookimpls() if caller else ())
        }
        for frame, _ in traceback.walk_tb(error.__traceback__):
            plugin = by_instance.get(id(stack.of_traceback(frame))) or by_code.get(frame.f_code)
            if plugin is not None:
                return plugin
        return None


def _nothing(*arguments: Any) -> None:
    """Stand in for the hooks of a session that is detached."""


def is_scalar(value: object) -> bool:
    """Whether ``value`` is a 0-d tensor."""
    return isinstance(value, torch.Tensor) and value.ndim == 0


def is_number(value: object) -> bool:
    """Whether ``value`` is a number or a 0-d tensor."""
    return isinstance(value, Real) or is_scalar(value)


def described(value: object) -> str:
    """Return ``value`` as a message shows it."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return repr(value)
