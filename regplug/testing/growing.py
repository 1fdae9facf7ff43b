"""Check of what piles up while steps go by: objects, memory, files, threads."""

import ctypes
import functools
import gc
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from regplug.testing.bench import Rig, Setup
from regplug.testing.places import is_own
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Subject

__all__: list[str] = []

WARM_UP = 8
# Each longer than the one before: what is bounded, such as the last 100 values, ends growing.
WINDOWS = (16, 16, 64, 256, 1024)


@check("growth", after=("leak", "cost"))
def growth(subject: Subject) -> Iterable[Case]:
    """Steps pile up no objects, no memory, no open files and no threads."""

    def run(setup: Setup) -> None:
        rig = subject.rig(setup)
        rig.run(WARM_UP)
        tracemalloc.start()
        try:
            _grows(rig)
        finally:
            tracemalloc.stop()

    setup = subject.loud(subject.deliveries[0])
    yield setup.regime, partial(run, setup)


def _grows(rig: Rig) -> None:
    _window(rig, 2)
    start = tracemalloc.take_snapshot() if tracemalloc.is_tracing() else None
    before, first, total = _measure(), _measure(), 0
    suspects = set(before)
    for steps in WINDOWS:
        _window(rig, steps)
        now = _measure()
        total += steps
        suspects = {what for what in suspects if now[what] - before[what] >= LEAST[what] * steps}
        if not suspects:
            return
        before = now
    more = {what: before[what] - first[what] for what in sorted(suspects)}
    listed = " and ".join(f"{count} more {what}" for what, count in more.items())
    raise Failure(f"after {total} more steps there are {listed}{_where(start)}")


def _window(rig: Rig, steps: int) -> None:
    for step in range(steps):
        rig.step(step % 4)
    gc.collect()


def _where(start: Any) -> str:
    """Return the line of the plugin that made most of what has piled up."""
    if start is None:
        return ""
    found = tracemalloc.take_snapshot().compare_to(start, "lineno")
    own = [d for d in found if d.size_diff > 0 and is_own(d.traceback[0].filename)]
    if not own:
        return ""
    most = max(own, key=lambda d: d.size_diff)
    return f", most of them made at {most.traceback[0].filename}:{most.traceback[0].lineno}"


# Least growth for each step that counts: less is what caches do.
LEAST = {
    "bytes of objects": 8,
    "bytes of memory": 64,
    "open files": 0.5,
    "threads": 0.5,
}


def _measure() -> dict[str, int]:
    found = {"bytes of objects": tracemalloc.get_traced_memory()[0]}
    if (used := _allocated()) is not None:
        found["bytes of memory"] = used()
    files, threads = Path("/dev/fd"), Path("/proc/self/task")
    if files.exists():
        found["open files"] = len(os.listdir(files))  # noqa: PTH208 - a path for each is slow
    found["threads"] = len(os.listdir(threads)) if threads.exists() else threading.active_count()  # noqa: PTH208
    return found


class _Mallinfo2(ctypes.Structure):
    _fields_ = [  # noqa: RUF012
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


@functools.cache
def _allocated() -> Callable[[], int] | None:
    """Return a function that tells how much memory is in use, of torch's too; None elsewhere."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError, TypeError):
        return None
    mallinfo2.restype = _Mallinfo2

    def used() -> int:
        info = mallinfo2()
        return int(info.uordblks) + int(info.hblkhd)

    return used
