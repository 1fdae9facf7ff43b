"""What a plugin refuses on purpose, told from what it stumbles over."""

from collections.abc import Iterator
from contextlib import contextmanager

from regplug.errors import PluginError, RegplugError
from regplug.testing.subject import Skip

__all__ = ["refusals"]


@contextmanager
def refusals() -> Iterator[None]:
    """Skip what is refused, and say how; an error that the plugin ran into stays one.

    Raises:
        Skip: it was refused, by the plugin or for it.
    """
    try:
        yield
    except RegplugError as error:
        last: BaseException = error
        while isinstance(last.__cause__, RegplugError):
            last = last.__cause__
        # Which is what another error becomes on its way through a hook.
        if isinstance(last, PluginError):
            raise
        raise Skip(f"it refuses that: {last}") from error
