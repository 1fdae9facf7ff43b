"""An end to what takes too long within this process, as far as that can be had."""

import ctypes
import signal
import threading
from collections.abc import Callable

__all__ = ["TooLong", "interrupted_after"]


class TooLong(BaseException):
    """Raised in the middle of what takes too long."""


def interrupted_after(seconds: float) -> Callable[[], None]:
    """Raise :class:`TooLong` in this thread after some time; return what calls that off."""
    me = threading.get_ident()
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():

        def ring(number: int, frame: object) -> None:
            raise TooLong

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, seconds)

        def undo() -> None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

        return undo
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    timer = threading.Timer(seconds, raise_in, (ctypes.c_ulong(me), ctypes.py_object(TooLong)))
    timer.daemon = True
    timer.start()
    return timer.cancel
