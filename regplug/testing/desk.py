"""Where a plugin sits its exam: in a process of its own, which may hang or die.

The process is forked from this one, which costs milliseconds. Where that is not safe (a GPU, whose
threads and memory a fork breaks; systems other than Linux) one is started and used again, to which
the plugin must be sent. What can't be sent sits the exam in this process.
"""

import atexit
import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any

from regplug.testing.candidate import (
    ATTACH,
    EVERYWHERE,
    Answer,
    Paper,
    answers,
    attachable,
    message_of,
    own_settings,
    serve,
)
from regplug.testing.forking import forks
from regplug.testing.interrupting import TooLong, interrupted_after
from regplug.testing.places import place_in, redirected
from regplug.testing.processes import ProcessesError, start_processes
from regplug.testing.registry import registered

__all__ = ["SECONDS", "Desk", "Ended", "desk", "stop_desks"]

SECONDS = 45.0
"""That a check may take in one regime. Each ends in one or two, also on a busy machine."""

_START_SECONDS = 180.0
_SLACK_SECONDS = 10.0


class Ended(Exception):  # noqa: N818 - the plugin's error, not the exam's
    """The process hung or died; the message says where.

    Attributes:
        regime: in which.
    """

    def __init__(self, message: str, regime: str = EVERYWHERE) -> None:
        super().__init__(message)
        self.regime = regime


class _Unreadable(Exception):  # noqa: N818 - told, and then done without
    """The plugin can't be sent to another process."""


class Desk:
    """A process in which one plugin is examined.

    Args:
        paper: who is examined.
        fork: whether the process is a copy of this one, which has the plugin already.
    """

    note = ""

    def __init__(self, paper: Paper, *, fork: bool) -> None:
        self._paper, self._fork = paper, fork
        self._trace, self._output = _file("trace"), _file("output")
        context: Any = multiprocessing.get_context("fork" if fork else "spawn")
        self._pipe, theirs = context.Pipe()
        given = (paper, self._pipe) if fork else (None, None)
        self._process = context.Process(
            target=_main, args=(*given, theirs, self._trace, self._output, SECONDS)
        )
        self._process.start()
        theirs.close()
        self._seconds = SECONDS if fork else _START_SECONDS
        if not fork:
            self.give(paper)

    def give(self, paper: Paper) -> None:
        """Let the process examine another plugin."""
        try:
            sent = pickle.dumps(paper)
        except Exception as error:
            raise _Unreadable(str(error)) from error
        self._send((sys.path, sent))
        kind, what = self._receive()
        if kind != "read":
            raise _Unreadable(str(what))
        self._seconds = SECONDS

    def attach(self) -> str:
        """Return the plugin's title; raise what making and attaching it raises.

        Raises:
            Ended: that ended the process.
        """
        self._send(ATTACH)
        kind, what = self._receive()
        if kind == "refused":
            raise what
        if kind == "ends":
            raise Ended(what)
        return str(what)

    def ask(self, check: str) -> Iterator[Answer]:
        """Yield a check's answers.

        Raises:
            Ended: the process hung or died.
        """
        self._send(check)
        regime = EVERYWHERE
        while True:
            kind, what = self._receive(regime)
            if kind == "over":
                return
            if kind == "ends":
                raise Ended(what, regime)
            if kind == "refused":
                raise what
            if kind == "ranks":
                self._ask_ranks(what)
            elif isinstance(what, Answer):
                yield what
            else:
                regime = what

    def _ask_ranks(self, job: bytes) -> None:
        try:
            found: Any = start_processes().run_job(job)
        except ProcessesError as error:
            found = error
        self._send(found)

    def _send(self, what: Any) -> None:
        with contextlib.suppress(OSError):  # it has died: seen when an answer is waited for
            self._pipe.send_bytes(pickle.dumps(what))

    def _receive(self, regime: str = EVERYWHERE) -> tuple[str, Any]:
        limit = self._seconds + _SLACK_SECONDS
        connection.wait([self._pipe, self._process.sentinel], timeout=limit)
        try:
            if self._pipe.poll():
                kind, what = pickle.loads(self._pipe.recv_bytes())
                return str(kind), what
        except (EOFError, OSError):
            pass
        raise Ended(self._last_words(), regime)

    def _last_words(self) -> str:
        self._process.join(2.0)
        status = self._process.exitcode
        trace = Path(self._trace).read_text(encoding="utf-8", errors="replace")
        where = "" if (at := place_in(self._trace)) is None else f" (at {at})"
        if status is None or trace.startswith("Timeout"):
            return f"it did not come to an end within {SECONDS:g} s{where}"
        how = f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"
        said = Path(self._output).read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((f"; it printed last: {line}" for line in reversed(said) if line.strip()), "")
        return f"it ends the process, {how}{where}{last}"

    def close(self) -> None:
        """End the process, or keep it for the next plugin if it can serve another."""
        if not self._fork and self._process.is_alive() and _keep(self):
            self._send(None)
            return
        self.stop()

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()
        for path in (self._trace, self._output):
            Path(path).unlink(missing_ok=True)


def _file(kind: str) -> str:
    handle, path = tempfile.mkstemp(prefix=f"regplug-{kind}-")
    os.close(handle)
    return path


def _main(
    paper: Paper | None, other_end: Any, pipe: Any, trace: str, output: str, seconds: float
) -> None:
    """Examine a plugin, or one after another that come through the pipe. Runs in the process."""
    if other_end is not None:
        other_end.close()
    # Whoever holds the exam is interrupted, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with (
        open(trace, "w", encoding="utf-8") as places,  # noqa: PTH123
        open(output, "wb", buffering=0) as printed,  # noqa: PTH123
        redirected(printed),
        contextlib.suppress(EOFError, BrokenPipeError),
    ):
        if paper is not None:
            serve(paper, pipe, places, seconds)
        while paper is None:
            sys.path[:], sent = pickle.loads(pipe.recv_bytes())
            try:
                read = pickle.loads(sent)
            except Exception as error:
                pipe.send_bytes(pickle.dumps(("unreadable", f"{type(error).__name__}: {error}")))
                continue
            pipe.send_bytes(pickle.dumps(("read", None)))
            serve(read, pipe, places, seconds)


class _Here(Desk):
    """This process, for what can't be examined in another: what ends it, ends the exam too."""

    def __init__(self, paper: Paper, why: str) -> None:
        self._subject, self._trace, self._output = paper.subject(), _file("trace"), _file("output")
        self._checks = {check.id: check for check in registered()}
        self.note = (
            "examined in this process, since the plugin can't be sent to another: give a spec, or "
            f"a class, function or partial that stands at the top of a module ({why})"
        )

    def attach(self) -> str:
        try:
            with self._limited():
                return attachable(self._subject)
        except TooLong:
            raise Ended(self._too_long()) from None
        except SystemExit as error:
            raise Ended(message_of(error)) from error

    def ask(self, check: str) -> Iterator[Answer]:
        regime = EVERYWHERE
        found = answers(self._subject, self._checks[check])
        while True:
            try:
                with self._limited():
                    answer = next(found)
            except StopIteration:
                return
            except TooLong:
                raise Ended(self._too_long(), regime) from None
            if isinstance(answer, Answer):
                if answer.message.startswith(f"it ends the process: {TooLong.__name__}"):
                    raise Ended(self._too_long(), regime)
                yield answer
            else:
                regime = answer

    def _too_long(self) -> str:
        return f"it did not come to an end within {SECONDS:g} s (at {place_in(self._trace)})"

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        """Interrupt what takes too long, as far as that can be done within a process."""
        with (
            open(self._trace, "w", encoding="utf-8") as places,  # noqa: PTH123
            open(self._output, "wb", buffering=0) as printed,  # noqa: PTH123
            own_settings(),
            redirected(printed),
        ):
            faulthandler.dump_traceback_later(SECONDS, file=places)
            undo = interrupted_after(SECONDS + 0.5)
            try:
                yield
            finally:
                undo()
                faulthandler.cancel_dump_traceback_later()

    def close(self) -> None:
        for path in (self._trace, self._output):
            Path(path).unlink(missing_ok=True)


_idle: list[Desk] = []


def _keep(process: Desk) -> bool:
    """Keep a process for the next exam, if none is kept yet."""
    if not _idle:
        _idle.append(process)
        return True
    return False


def desk(paper: Paper) -> Desk:
    """Return where a plugin can sit its exam."""
    if forks():
        return Desk(paper, fork=True)
    try:
        if _idle:
            process = _idle.pop()
            try:
                process.give(paper)
            except BaseException:
                process.stop()
                raise
            return process
        return Desk(paper, fork=False)
    except (_Unreadable, Ended) as error:
        return _Here(paper, str(error))


def stop_desks() -> None:
    """End the process that is kept for the next exam, if there is one."""
    while _idle:
        _idle.pop().stop()


atexit.register(stop_desks)
