"""The progress bar of a search: tqdm's, which knows terminals, logs and notebooks."""

import sys
from typing import TextIO

from tqdm.auto import tqdm

__all__ = ["Progress"]


class Progress:
    """Shows how many fits of a search are done, and how long the rest will take.

    Args:
        total: how many there are.
        done: how many were done before (by a search that is continued).
        show: False writes nothing.
        stream: where to write; standard error if None.
    """

    def __init__(
        self, total: int, done: int = 0, *, show: bool = True, stream: TextIO | None = None
    ) -> None:
        stream = sys.stderr if stream is None else stream
        live = stream.isatty()
        self._bar = tqdm(
            total=total,
            initial=done,
            disable=not show or done == total,
            file=stream,
            # A log, which keeps what a terminal writes over, gets every tenth of it.
            miniters=None if live else max(total // 10, 1),
            mininterval=0.1 if live else 0,
            bar_format="strengths {bar:20} {n}/{total} fits, {elapsed} + {remaining}{postfix}",
        )

    def advance(self, fits: int, best: float) -> None:
        """Add ``fits`` that are done; ``best`` is the best score of one fold so far."""
        self._bar.set_postfix_str(f"best fold {best:.4g}", refresh=False)
        self._bar.update(fits)

    def close(self) -> None:
        """End the line. May be called twice."""
        self._bar.close()
