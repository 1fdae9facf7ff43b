"""A progress bar: one line that is rewritten on a terminal, a few lines in a log."""

import sys
import time
from typing import TextIO

__all__ = ["Progress"]


class Progress:
    """Tells how many fits of a search are done, and how long the rest will take.

    Args:
        total: how many there are.
        done: how many were done before (by a search that is continued).
        show: False writes nothing.
        stream: where to write; standard error if None.
    """

    def __init__(
        self, total: int, done: int = 0, *, show: bool = True, stream: TextIO | None = None
    ) -> None:
        self.total, self.done, self._before = total, done, done
        self._stream = stream if stream is not None else sys.stderr
        self._show = show and total > done
        self._live = self._show and self._stream.isatty()
        self._started = self._told = time.monotonic()
        self._share = done * 10 // max(total, 1)

    def advance(self, fits: int, best: float) -> None:
        """Add ``fits`` that are done; ``best`` is the best score of one fold so far."""
        self.done += fits
        now = time.monotonic()
        if not self._show:
            return
        if self._live:
            if now - self._told >= 0.1 or self.done == self.total:
                self._told = now
                self._stream.write(f"\r\x1b[2K{self._line(now, best)}")
                self._stream.flush()
        elif (share := self.done * 10 // self.total) > self._share:
            self._share = share
            self._stream.write(f"{self._line(now, best)}\n")
            self._stream.flush()

    def close(self) -> None:
        """End the line. May be called twice."""
        if self._live:
            self._stream.write("\n")
            self._stream.flush()
        self._live = self._show = False

    def _line(self, now: float, best: float) -> str:
        filled = self.done * 20 // self.total
        passed = now - self._started
        left = passed / max(self.done - self._before, 1) * (self.total - self.done)
        return (
            f"strengths {'█' * filled}{'░' * (20 - filled)} {self.done}/{self.total} fits, "
            f"{_clock(passed)} + {_clock(left)}, best fold {best:.4g}"
        )


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"
