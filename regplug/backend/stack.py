"""What the frames on this thread's stack tell, by no name of a library's own.

The guard against a step that fires twice rests on frames as objects: an inner step is one within
the very call of the outer one, whatever torch calls the functions in between. Whose step or method
a frame is, is known by the code of what the classes have at that moment. So nothing here goes
astray when torch renames or moves a function; where frames don't tell what must be there, whoever
asks says so.
"""

import inspect
import sys
from collections.abc import Collection, Iterable, Iterator
from types import CodeType, FrameType
from typing import Any

from torch.optim import Optimizer

from regplug.errors import UnsupportedError

__all__ = [
    "Caller",
    "is_at_work",
    "is_running",
    "is_stepping",
    "is_within",
    "of_traceback",
    "require",
    "scopes",
    "stepping",
    "surrounding",
]

_OWN = __name__.partition(".")[0]
# An object may answer that it wraps another for ever.
_WRAPPED_AT_MOST = 20


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


def stepping(optimizers: Collection[Optimizer]) -> Iterator[Optimizer]:
    """Yield those of ``optimizers`` whose ``step`` is at work in this thread, innermost first.

    A step is known by the code of what its class has by that name, whoever wrapped it, and by its
    first argument. Whoever knows that one is at work can see by it whether frames tell of it.
    """
    wanted = {id(optimizer) for optimizer in optimizers}
    codes = _codes(getattr(kind, "step", None) for kind in set(map(type, optimizers)))
    for frame in _frames():
        if id(frame.f_code) in codes:
            held = _first_argument(frame)
            if isinstance(held, Optimizer) and id(held) in wanted:
                yield held


def is_at_work(owner: object, method: str) -> bool:
    """Whether this method of this very object is at work in this thread."""
    codes = _codes([getattr(type(owner), method, None)])
    return any(id(f.f_code) in codes and _first_argument(f) is owner for f in _frames())


def is_within(module: str) -> bool:
    """Whether a function of this module is at work in this thread."""
    return any(_module(frame) == module for frame in _frames())


def is_stepping(optimizer: Optimizer) -> bool:
    """Whether the ``step`` of ``optimizer`` is at work: yes where it is no function of Python's."""
    if not _codes([getattr(type(optimizer), "step", None)]):
        return True
    return next(stepping([optimizer]), None) is not None


def surrounding(optimizer: Optimizer) -> Iterator[Optimizer]:
    """Yield the other optimizers of which a method, whatever its name, calls this one's."""
    classes = {base for kind in _subclasses(Optimizer) for base in kind.__mro__}
    codes = _codes(value for kind in classes for value in list(vars(kind).values()))
    for frame in _frames():
        # A look at a frame's locals keeps them alive until the frame ends: only where that is soon.
        if id(frame.f_code) in codes or "step" in frame.f_code.co_name:
            holder = _first_argument(frame)
            if isinstance(holder, Optimizer) and holder is not optimizer:
                yield holder


def _codes(functions: Iterable[object]) -> dict[int, CodeType]:
    """Return the code of each of these functions, and of what they wrap, by its identity."""
    found: dict[int, CodeType] = {}
    for outermost in functions:
        function = outermost
        for _ in range(_WRAPPED_AT_MOST):
            if function is None:
                break
            code = getattr(function, "__code__", None)
            if isinstance(code, CodeType):
                found[id(code)] = code
            function = getattr(function, "__wrapped__", None)
    return found


def _first_argument(frame: FrameType) -> object:
    """Return what the function of ``frame`` was given first: of a method, whose it is."""
    code = frame.f_code
    if code.co_argcount:
        return frame.f_locals.get(code.co_varnames[0])
    if code.co_flags & inspect.CO_VARARGS:
        given = frame.f_locals.get(code.co_varnames[code.co_kwonlyargcount])
        return given[0] if isinstance(given, tuple) and given else None
    return None


def _subclasses(kind: type) -> set[type]:
    found: set[type] = set()
    left: list[type] = [kind]
    while left:
        one = left.pop()
        found.add(one)
        left += set(one.__subclasses__()) - found
    return found


def scopes(internal: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the local variables of each frame, inner before outer, but of ``internal`` packages."""
    for frame in _frames():
        if _module(frame).partition(".")[0] not in internal:
            yield frame.f_locals


def of_traceback(frame: FrameType) -> object:
    """Return what ``self`` is in a frame of a traceback, None where it has none."""
    return frame.f_locals.get("self")
