"""What the frames on this thread's stack tell, by no name of a library's own.

The guard against a step that fires twice rests on frames as objects: an inner step is one within
the very call of the outer one, whatever torch calls the functions in between.
"""

import inspect
import sys
from collections.abc import Collection, Iterator
from types import CodeType, FrameType
from typing import Any

from torch.optim import Optimizer

from regplug.errors import UnsupportedError

__all__ = ["Caller", "is_running", "of_traceback", "require", "scopes", "stepping", "surrounding"]

_OWN = __name__.partition(".")[0]


def require() -> None:
    """Check that this Python shows its frames.

    Raises:
        UnsupportedError: it does not, as ``inspect.currentframe`` says.
    """
    if inspect.currentframe() is None:
        raise UnsupportedError(
            "this Python shows no frames (inspect.currentframe() is None), by which regplug tells "
            "a step inside another from one after a step that raised: use CPython, or attach "
            "without the optimizer and write `with session.step(lr=…): optimizer.step()`"
        )


def _frames(frame: FrameType | None = None) -> Iterator[FrameType]:
    frame = frame or inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> str:
    name = frame.f_globals.get("__name__", "")
    return name if isinstance(name, str) else ""


class Caller:
    """Finds the innermost frame of others: of who called regplug.

    Private modules of torch are passed over: what a compiled caller has in between is gone as soon
    as it returns. A walk by names takes as long as a small step's event, so that a look at the
    place where it ended the last time comes first: is there the same call of the same code?
    """

    def __init__(self) -> None:
        self._depth = 0  # of the frame that it called, the last of those that are passed over
        self._inner: CodeType | None = None
        self._outer: CodeType | None = None

    def frame(self) -> FrameType | None:
        """Return the frame; None where all are passed over."""
        try:
            inner = sys._getframe(self._depth)
        except ValueError:  # there are not as many
            inner = sys._getframe()
        outer = inner.f_back
        if outer is not None and inner.f_code is self._inner and outer.f_code is self._outer:
            return outer
        inner = sys._getframe()
        for depth, frame in enumerate(_frames(inner)):
            name = _module(frame)
            if name.partition(".")[0] != _OWN and not name.startswith("torch._"):
                self._depth = depth - 1
                self._inner, self._outer = inner.f_code, frame.f_code
                return frame
            inner = frame
        return None


def is_running(wanted: FrameType | None) -> bool:
    """Whether this very call is still under way in this thread."""
    frame = inspect.currentframe() if wanted is not None else None
    while frame is not None:
        if frame is wanted:
            return True
        frame = frame.f_back
    return False


def stepping() -> Iterator[Optimizer]:
    """Yield the optimizers whose ``step`` calls this, innermost first.

    They are what functions of ``torch.optim``, as which each step runs, have in hand.
    """
    for frame in _frames():
        if _module(frame).startswith("torch.optim."):
            held = next((v for v in frame.f_locals.values() if isinstance(v, Optimizer)), None)
            if held is not None:
                yield held


def surrounding(optimizer: Optimizer) -> Iterator[Optimizer]:
    """Yield the other optimizers of which a method named like ``step`` calls this one's."""
    for frame in _frames():
        # A look at a frame's locals keeps them alive until the frame ends: only where that is soon.
        if "step" in frame.f_code.co_name and "self" in frame.f_code.co_varnames:
            holder = frame.f_locals.get("self")
            if isinstance(holder, Optimizer) and holder is not optimizer:
                yield holder


def scopes(internal: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the local variables of each frame, inner before outer, but of ``internal`` packages."""
    for frame in _frames():
        if _module(frame).partition(".")[0] not in internal:
            yield frame.f_locals


def of_traceback(frame: FrameType) -> object:
    """Return what ``self`` is in a frame of a traceback, None where it has none."""
    return frame.f_locals.get("self")
