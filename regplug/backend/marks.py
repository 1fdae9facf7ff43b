"""What pluggy marks hooks with: asked of pluggy itself, whatever the mark is called."""

from typing import Any

import pluggy

from regplug.errors import UnsupportedError

__all__ = ["PROJECT", "is_hook", "is_own", "is_spec", "mark_of"]

PROJECT = "regplug"


def mark_of(marker: Any) -> str:
    """Return the name of the attribute by which ``marker`` marks a function.

    Raises:
        UnsupportedError: it does not mark it so.
    """

    def function() -> None: ...

    marks: list[str] = list(vars(marker(function)))
    if len(marks) != 1:
        raise UnsupportedError(
            f"pluggy {pluggy.__version__} does not mark a hook by one attribute of its function "
            f"(but by {marks}), by which regplug knows hooks: install an older pluggy"
        )
    return marks[0]


_HOOK = mark_of(pluggy.HookimplMarker(PROJECT))
_SPEC = mark_of(pluggy.HookspecMarker(PROJECT))


def is_hook(function: object) -> bool:
    """Return whether a function is marked as a hook, with :data:`regplug.hookimpl`.

    Args:
        function: a function, a bound method, or anything else, which is none.

    Returns:
        True if it is marked, whatever it is called.

    >>> import regplug
    >>> class Watcher:
    ...     @regplug.hookimpl
    ...     def after_step(self, session): ...
    ...     def another(self): ...
    >>> is_hook(Watcher().after_step), is_hook(Watcher.another), is_hook(None)
    (True, False, False)
    """
    return hasattr(function, _HOOK)


def is_spec(function: object) -> bool:
    """Whether a function says what a hook is."""
    return hasattr(function, _SPEC)


def is_own(instance: object, name: str, base: type) -> bool:
    """Whether an object has a method of its own where ``base`` has one of that name."""
    method = getattr(instance, name)
    return getattr(method, "__func__", method) is not getattr(base, name)
