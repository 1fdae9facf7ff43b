"""What a step does beside computing: it sleeps, or starts processes."""

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from regplug.backend.stand_ins import stand_in

__all__ = ["audited"]

_WORDS = {
    "subprocess.Popen": "it starts a process (subprocess)",
    "os.system": "it starts a process (os.system)",
    "os.fork": "it starts a process (os.fork)",
    "os.posix_spawn": "it starts a process (os.posix_spawn)",
}

_lists: list[tuple[int, list[str]]] = []


@functools.cache
def _listen() -> None:
    def heard(event: str, arguments: object) -> None:
        if event in _WORDS:
            _note(_WORDS[event])

    sys.addaudithook(heard)  # which can't be taken off again


def _note(words: str) -> None:
    """Note what the thread does that is listened to: in others anything may be done meanwhile."""
    if _lists and _lists[-1][0] == threading.get_ident():
        _lists[-1][1].append(words)


def _noted(sleep: Callable[..., None]) -> Callable[..., None]:
    def sleeps(seconds: float) -> None:
        _note("it sleeps (time.sleep)")
        sleep(seconds)

    return sleeps


@contextmanager
def audited() -> Iterator[list[str]]:
    """Yield a list of what this thread does meanwhile, in words.

    >>> with audited() as done:
    ...     time.sleep(0)
    >>> done
    ['it sleeps (time.sleep)']
    """
    _listen()
    done: list[str] = []
    undo = stand_in(time, "sleep", _noted)
    _lists.append((threading.get_ident(), done))
    try:
        yield done
    finally:
        _lists.pop()
        undo()
