"""The public errors. Every one is a :class:`RegplugError`, so one ``except`` catches them all.

A wrong argument is also a :class:`ValueError`, and an unknown plugin also a :class:`LookupError`,
so code that knows nothing of regplug catches them as well.
"""

__all__ = [
    "PluginError",
    "PluginNotFoundError",
    "RegplugError",
    "SelectionError",
    "SpecError",
    "StateError",
    "UnsupportedError",
]


class RegplugError(Exception):
    """Base of every error that regplug raises on purpose.

    >>> import regplug
    >>> try:
    ...     regplug.Selection(where=[])
    ... except RegplugError as error:
    ...     print(type(error).__name__)
    SelectionError
    """


class SpecError(RegplugError, ValueError):
    """A spec or argument is wrong: bad syntax, a negative strength, one name for two plugins."""


class PluginNotFoundError(RegplugError, LookupError):
    """No installed distribution offers a plugin of this name."""


class PluginError(RegplugError):
    """A plugin is broken: it does not load, breaks the hook contract, or raised while it ran."""


class NeverSetError(PluginError, AttributeError):
    """An attribute of a plugin has no value yet. ``hasattr`` and the like take it for missing."""


class SelectionError(RegplugError, ValueError):
    """A selection (``where=``) is wrong or matches no parameter that the optimizer updates."""


class StateError(RegplugError, ValueError):
    """A saved state does not fit the session that it is loaded into."""


class UnsupportedError(RegplugError):
    """regplug knows that it can't be right here: a wrapper, an optimizer, a layout."""
