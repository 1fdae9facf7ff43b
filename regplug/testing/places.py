"""Where a plugin stands when it fails, hangs or ends its process; and what it prints meanwhile."""

import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pluggy
import torch

import regplug

__all__ = ["is_own", "place", "place_in", "place_of", "redirected"]

# As faulthandler writes them, the innermost frame first.
_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>.+)$', re.MULTILINE)

_THREADS = re.compile(r"^(?=(?:Current thread|Thread) 0x)", re.MULTILINE)

# Code that is not the plugin's: the search for its place goes on outwards.
_FOREIGN = (
    str(Path(regplug.__file__).parent) + os.sep,
    str(Path(torch.__file__).parent) + os.sep,
    str(Path(pluggy.__file__).parent) + os.sep,
    "<",
)
_STDLIB = sysconfig.get_path("stdlib") + os.sep


def is_own(file: str) -> bool:
    """Tell whether a file is a plugin's: none of Python, torch, pluggy and regplug itself."""
    if file.startswith(_STDLIB) and "-packages" not in file.removeprefix(_STDLIB):
        return False
    return not file.startswith(_FOREIGN)


def place(frames: Iterable[tuple[str, str, str]]) -> str | None:
    """Return the first frame outside of torch and regplug, else the first of all."""
    innermost = None
    for file, line, name in frames:
        here = f"{file}:{line} in {name}"
        if is_own(file):
            return here
        innermost = innermost or here
    return innermost


def place_in(path: str) -> str | None:
    """Return the plugin's place in what faulthandler wrote to a file, or None if it is empty."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    # The thread that failed, if that is said, else the one that began: it is written last.
    threads = _THREADS.split(text)
    one = next((t for t in threads if t.startswith("Current thread")), threads[-1])
    return place((f["file"], f["line"], f["name"]) for f in _FRAME.finditer(one))


def place_of(error: BaseException) -> str | None:
    """Return the plugin's place in the traceback of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return place((f.filename, str(f.lineno), f.name) for f in frames)


@contextmanager
def redirected(file: BinaryIO) -> Iterator[None]:
    """Write into a file whatever this process prints, from C too, for as long as this lasts."""
    kept_streams = sys.stdout, sys.stderr
    kept = {fd: os.dup(fd) for fd in (1, 2) if _is_open(fd)}
    for fd in kept:
        os.dup2(file.fileno(), fd)
    text = open(os.dup(file.fileno()), "w", buffering=1, encoding="utf-8", errors="replace")  # noqa: PTH123, SIM115
    sys.stdout = sys.stderr = text
    try:
        yield
    finally:
        text.close()
        sys.stdout, sys.stderr = kept_streams
        for fd, copy in kept.items():
            os.dup2(copy, fd)
            os.close(copy)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
