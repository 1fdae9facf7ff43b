"""Check of what piles up while steps go by: objects, memory, files, threads."""

import ctypes
import functools
import gc
import os
import sys
import threading
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch

from regplug.testing.bench import Rig, Setup
from regplug.testing.checks.garbage import only_new_objects
from regplug.testing.places import is_own
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Subject

__all__: list[str] = []

WARM_UP = 12
# Each must show growth, and is longer than the one before: what is bounded, such as the last 100
# values, ends growing.
WINDOWS = (16, 32, 64, 256, 1024)
# Growth for each step that counts: less is what caches do.
LEAST = {
    "objects": 0.75,
    "bytes of memory": 24,
    "numbers in its tensors": 0.75,
    "open files": 0.75,
    "threads": 0.75,
}


@check("growth", after=("cost", "leak"))
def growth(subject: Subject) -> Iterable[Case]:
    """Steps pile up no objects, no memory, no open files and no threads."""

    def run(setup: Setup) -> None:
        with only_new_objects():
            grows(subject.rig(setup))

    def grows(rig: Rig) -> None:
        _run(rig, WARM_UP)
        before, total = _measured(rig), 0
        first, suspects = before, set(before)
        for steps in WINDOWS:
            _run(rig, steps)
            now = _measured(rig)
            total += steps
            suspects = {w for w in suspects if now[w] - before[w] >= LEAST[w] * steps}
            before = now
            if not suspects:
                return
            if steps >= 64 and suspects & {"open files", "threads"}:
                break  # the system has few of them
        more = " and ".join(f"{before[w] - first[w]} more {w}" for w in sorted(suspects))
        raise Failure(f"after {total} more steps there are {more}{_where(rig)}")

    setup = subject.loud(subject.deliveries[0])
    yield setup.regime, partial(run, setup)


def _kept(rig: Rig) -> int:
    """Return how many numbers are in tensors that the plugin keeps, alone and in collections."""

    def numbers(thing: object, depth: int) -> int:
        if isinstance(thing, torch.Tensor):
            return thing.numel()
        if isinstance(thing, dict):
            thing = list(thing.values())
        if isinstance(thing, list | tuple | deque) and depth:
            return sum(numbers(part, depth - 1) for part in thing)
        return 0

    return numbers(vars(rig.plugin), 3)


def _run(rig: Rig, steps: int) -> None:
    for step in range(steps):
        rig.step(step % 4)
    gc.collect()


def _measured(rig: Rig) -> dict[str, int]:
    found = {"objects": sys.getallocatedblocks(), "numbers in its tensors": _kept(rig)}
    if (used := _allocated()) is not None:
        found["bytes of memory"] = used()
    files, threads = Path("/dev/fd"), Path("/proc/self/task")
    if files.exists():
        found["open files"] = len(os.listdir(files))  # noqa: PTH208 - a path for each is slow
    found["threads"] = len(os.listdir(threads)) if threads.exists() else threading.active_count()  # noqa: PTH208
    return found


def _where(rig: Rig) -> str:
    """Return the line of the plugin that makes most of what piles up."""
    tracemalloc.start()
    try:
        _run(rig, WARM_UP)
        start = tracemalloc.take_snapshot()
        _run(rig, 64)
        found = tracemalloc.take_snapshot().compare_to(start, "lineno")
    finally:
        tracemalloc.stop()
    own = [d for d in found if d.count_diff > 0 and is_own(d.traceback[0].filename)]
    if not own:
        return ""
    at = max(own, key=lambda d: (d.count_diff, d.size_diff)).traceback[0]
    return f", most of them made at {at.filename}:{at.lineno}"


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
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
