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


def failure(error: Exception, name: str, source: str, event: str, step: int) -> Exception:
    """Return what to raise instead of an error of a plugin: it says who failed, where and when.

    Args:
        error: what the plugin raised.
        name: the plugin's.
        source: the distribution that the plugin comes from.
        event: the hook that was called.
        step: the step that it was called in.

    >>> failure(KeyError("rate"), "ramp", "acme 1.0", "after_step", 7)
    PluginError("ramp (acme 1.0) failed in after_step at step 7: KeyError: 'rate'")
    """
    # What regplug raises on purpose keeps its kind: a wrong argument stays a ValueError.
    on_purpose = type(error).__module__ == RegplugError.__module__
    said = str(error).removeprefix(f"{name}: ")
    if on_purpose and event == "on_attach":
        error.args = (f"{name}: {said}",)
        return error
    kind = type(error) if on_purpose else PluginError
    what = said if on_purpose else f"{type(error).__name__}: {error}"
    return kind(f"{name} ({source}) failed in {event} at step {step}: {what}")
