"""``REGPLUG_TRACE=1``: a line on standard error for each event of each plugin, with its time."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Traced", "wanted"]


def wanted() -> bool:
    """Whether the environment asks for it. Looked at once, when a session is attached."""
    return os.environ.get("REGPLUG_TRACE", "").lower() not in ("", "0", "false", "no", "off")


class Traced:
    """A plugin's function, which tells of each call: the host's time, not that of a GPU's work.

    No function itself, so that whoever looks for a culprit by its code finds the plugin's.

    Args:
        function: of a hook.
        argnames: what it is given.
        event: the hook's name.
        plugin: the plugin's.
    """

    def __init__(
        self, function: Callable[..., Any], argnames: tuple[str, ...], event: str, plugin: str
    ) -> None:
        self._function, self._event, self._plugin = function, event, plugin
        self._place = argnames.index("session") if "session" in argnames else None
        self.__code__ = getattr(function, "__code__", None)
        rank = os.environ.get("RANK")
        self._rank = "" if rank is None else f"rank {rank} "

    def __call__(self, *arguments: Any) -> Any:
        """Call the function, and write how long it took."""
        where = ""
        if self._place is not None:
            session = arguments[self._place]
            where = f"{session.name} step {session.steps} "
        ending = "failed after "
        begun = time.perf_counter()
        try:
            found = self._function(*arguments)
            ending = ""
            return found
        finally:
            took = (time.perf_counter() - begun) * 1000
            line = f"regplug: {self._rank}{where}{self._event} {self._plugin}"
            print(f"{line} {ending}{took:.3f} ms", file=sys.stderr, flush=True)
