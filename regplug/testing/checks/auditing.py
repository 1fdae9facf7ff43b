"""What a step does beside computing: it sleeps, or starts processes."""

import functools
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["audited"]

_WORDS = {
    "subprocess.Popen": "it starts a process (subprocess)",
    "os.system": "it starts a process (os.system)",
    "os.fork": "it starts a process (os.fork)",
    "os.posix_spawn": "it starts a process (os.posix_spawn)",
}

_lists: list[list[str]] = []


@functools.cache
def _listen() -> None:
    def heard(event: str, arguments: object) -> None:
        if _lists and event in _WORDS:
            _lists[-1].append(_WORDS[event])

    sys.addaudithook(heard)  # which can't be taken off again


@contextmanager
def audited() -> Iterator[list[str]]:
    """Yield a list of what is done meanwhile, in words.

    >>> with audited() as done:
    ...     time.sleep(0)
    >>> done
    ['it sleeps (time.sleep)']
    """
    _listen()
    done: list[str] = []
    sleep = time.sleep

    def sleeps(seconds: Any) -> None:
        done.append("it sleeps (time.sleep)")
        sleep(seconds)

    _lists.append(done)
    time.sleep = sleeps
    try:
        yield done
    finally:
        time.sleep = sleep
        _lists.remove(done)
