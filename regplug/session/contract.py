"""The contract with each plugin, checked where it is registered: hooks, marks, versions."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pluggy

from regplug import hookspecs
from regplug.backend.marks import PROJECT, is_hook, is_spec
from regplug.errors import PluginError
from regplug.plugin import Plugin

__all__ = ["EVENTS", "managed"]

EVENTS = [name for name, hook in vars(hookspecs).items() if is_spec(hook) and callable(hook)]
"""The names of all hooks."""


class _Manager(pluggy.PluginManager):
    """Looks for hooks without reading a plugin's attributes.

    pluggy reads each of them up to 1.6, and a property that can't be read yet is an error there.
    """

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        return super().parse_hookimpl_opts(plugin, name) if _is_marked(plugin, name) else None


def _is_marked(plugin: object, name: str) -> bool:
    if name in EVENTS:
        return True
    # One of another name is no event; pluggy says so.
    found = inspect.getattr_static(plugin, name, None)
    return inspect.isroutine(found) and (
        is_hook(found) or is_hook(getattr(found, "__func__", None))
    )


def managed(plugins: Iterable[Plugin]) -> pluggy.PluginManager:
    """Return a plugin manager of a session's own that calls plugins in the order given.

    Raises:
        PluginError: a plugin was written for another version of the contract, or breaks it.
    """
    manager = _Manager(PROJECT)
    manager.add_hookspecs(hookspecs)
    for plugin in reversed(list(plugins)):
        if type(plugin).__hash__ is None:
            raise PluginError(
                f"{plugin.name} ({plugin.source}) can't be hashed, which pluggy needs; a plugin is "
                "equal to itself alone: for a dataclass write @dataclass(eq=False)"
            )
        _require_version(plugin)
        for name in EVENTS:
            hook: Callable[..., Any] | None = getattr(plugin, name, None)
            if callable(hook) and not is_hook(hook):
                raise PluginError(
                    f"{plugin.name} ({plugin.source}): {name} is a hook but is not marked with "
                    "@regplug.hookimpl, so it would never be called"
                )
        try:
            # pluggy calls the last registered first.
            manager.register(plugin, name=plugin.name)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(
                f"{plugin.name} ({plugin.source}) breaks the hook contract: {error}"
            ) from error
    return manager


def _require_version(plugin: Plugin) -> None:
    try:
        served = hookspecs.serves(plugin.requires)
    except ValueError as error:
        raise PluginError(f"{plugin.name} ({plugin.source}): requires: {error}") from None
    if not served:
        raise PluginError(
            f"{plugin.name} ({plugin.source}) was written for version {plugin.requires} of the "
            f"hook contract, and this regplug has {hookspecs.VERSION}: upgrade "
            f"{'the plugin' if _older(plugin.requires) else 'regplug'}"
        )


def _older(requires: str) -> bool:
    return int(requires.partition(".")[0]) < int(hookspecs.VERSION.partition(".")[0])
