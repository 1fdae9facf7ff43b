"""Children that are to be interrupted, whatever started the tests.

A shell that is not interactive has what it runs by ``&`` ignore SIGINT, and so do cron and its
like; a child would inherit that, and wait for ever for a Ctrl-C that it never sees.
"""

import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def child(command: Sequence[Any], seconds: float = 120) -> Iterator["subprocess.Popen[str]"]:
    """Start a process that heeds Ctrl-C, with pipes of text; it is killed after ``seconds``."""
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A disposition of SIG_DFL is what Python puts its own handler on; SIG_IGN it leaves.
        preexec_fn=_heed_ctrl_c,  # noqa: PLW1509 (it does nothing that could wait)
    )
    end = threading.Timer(seconds, process.kill)
    end.start()
    try:
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()
    finally:
        end.cancel()
        end.join()
