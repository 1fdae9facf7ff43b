"""The plugins of one session as they come and go: checked, attached, and let go of again."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from regplug.errors import RegplugError, SpecError, failure
from regplug.plugin import Plugin, session_of, set_session, set_steps
from regplug.session.calls import Calls
from regplug.session.states import States
from regplug.view import SessionView

if TYPE_CHECKING:
    from regplug.session.own_weights import Copies

__all__ = ["Attachments", "check", "suspected"]


def check(plugins: Sequence[Plugin], steppers: Sequence[object]) -> None:
    """Refuse plugins that can't be attached together, or not to these optimizers.

    Raises:
        SpecError: two have one name, or one is attached to another session.
        UnsupportedError: one would break an optimizer.
    """
    by_name: dict[str, Plugin] = {}
    for plugin in plugins:
        if plugin.name in by_name:
            raise SpecError(
                f"two plugins are named {plugin.name!r}: give one of them another, as in "
                f"{plugin.name}(…, name='{plugin.name}_2')"
            )
        if (name := session_of(plugin)) is not None:
            raise SpecError(
                f"{plugin.name} is attached to another session already "
                f"({name!r}): make a second instance, or give its spec"
            )
        if plugin.changes_weights:
            from regplug.session import own_weights

            own_weights.refuse(plugin, steppers)
        by_name[plugin.name] = plugin


def suspected(
    optimizers: Sequence[Optimizer],
    plugins: Sequence[Plugin],
    states: Mapping[Any, Any] | None = None,
) -> "Copies | None":
    """Return what looks whether an optimizer keeps weights of its own, None where none need to."""
    if not any(plugin.changes_weights for plugin in plugins):
        return None
    from regplug.session import own_weights

    return own_weights.suspected(optimizers, plugins, states)


class Attachments:
    """The plugins that are attached now.

    Args:
        calls: calls them.
        states: keeps what they know when they leave.
    """

    def __init__(self, calls: Calls, states: States) -> None:
        self._calls, self._states = calls, states
        self._plugins: list[Plugin] = []

    def add(self, plugin: Plugin, session: SessionView) -> None:
        """Attach one. If it fails, it is to be let go of all the same."""
        self._plugins.append(plugin)
        set_session(plugin, session.name)
        set_steps((plugin,), 0)
        self._calls.one(plugin, "on_attach", session)
        try:
            plugin.settle_patterns(session)
        except RegplugError as error:
            named = failure(error, plugin.name, plugin.source, "on_attach", session.steps)
            raise named from error

    def release(self, session: SessionView, *, keep: bool) -> list[RegplugError]:
        """Let go of all, the last first, and return what failed. May be called again.

        Each is let go of once it is done, so that a second call ends what was interrupted.
        """
        failures = []
        while self._plugins:
            plugin = self._plugins[-1]
            try:
                self._plugins.pop()
                if keep:
                    self._states.keep(plugin)
                self._calls.one(plugin, "on_detach", session)
                set_session(plugin, None)
            except RegplugError as error:
                set_session(plugin, None)
                failures.append(error)
            except BaseException:
                if not any(other is plugin for other in self._plugins):
                    self._plugins.append(plugin)
                raise
        return failures
