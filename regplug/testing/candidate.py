"""The side of an exam on which the plugin runs: asked one check after another, it answers."""

import faulthandler
import os
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch

from regplug.errors import RegplugError
from regplug.testing.bench import Bench
from regplug.testing.checks.acting import choose_bench
from regplug.testing.knobs import readings, set_back
from regplug.testing.places import place, place_of
from regplug.testing.processes import ProcessesError, Ranks, use
from regplug.testing.registry import Check, registered
from regplug.testing.subject import Failure, Skip, Subject

__all__ = [
    "ATTACH",
    "EVERYWHERE",
    "Answer",
    "Paper",
    "answers",
    "attachable",
    "message_of",
    "own_settings",
    "serve",
]

EVERYWHERE = "–"
ATTACH = "to attach"


@dataclass(frozen=True)
class Paper:
    """Who sits an exam, and on what."""

    source: Any
    bench: Bench
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The spec, or what can be said of another source without running it."""
        return self.source if isinstance(self.source, str) else f"{self.source!r}"

    def subject(self) -> Subject:
        """Return the plugin under exam, new."""
        return Subject(self.source, self.bench, self.values)


@dataclass(frozen=True)
class Answer:
    """What came of a check in one regime: as in ``Result``."""

    regime: str
    outcome: str
    message: str = ""


@contextmanager
def own_settings() -> Iterator[None]:
    """Leave the caller's random numbers and settings as they are, whatever a plugin does."""
    before = readings()
    try:
        with _ours():
            yield
    finally:
        set_back(before)


@contextmanager
def _ours() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
        # Warnings are for those who train.
        warnings.simplefilter("ignore")
        # The models are tiny: more threads than one wait for each other.
        torch.set_num_threads(1)
        yield


def attachable(subject: Subject) -> str:
    """Return the plugin's title; raise what attaching raises before any question is asked."""
    choose_bench(subject)
    return subject.title


def answers(subject: Subject, check: Check) -> Iterator[str | Answer]:
    """Yield each regime's name before it is examined, and its answer after."""
    yield EVERYWHERE
    try:
        cases = list(check.cases(subject))
    except Skip as why:
        yield Answer(EVERYWHERE, "skipped", str(why))
        return
    except BaseException as error:
        yield Answer(EVERYWHERE, "failed", message_of(error))
        return
    for regime, run in cases:
        yield regime
        try:
            run()
        except Skip as why:
            yield Answer(regime, "skipped", str(why))
        except BaseException as error:
            yield Answer(regime, "failed", message_of(error))
        else:
            yield Answer(regime, "passed")


def message_of(error: BaseException) -> str:
    """Return what a report says of an error that came out of a plugin."""
    if isinstance(error, Failure | ProcessesError):
        return str(error)
    at = place_of(error)
    if not isinstance(error, Exception):
        said = f": {error}" if str(error) else ""
        return f"it ends the process: {type(error).__name__}{said} (at {at})"
    if isinstance(error, RegplugError):
        return str(error) if error.__cause__ is None else f"{error} (at {at})"
    return f"{type(error).__name__}: {error} (at {at})"


class _Asked(Ranks):
    """The ranks of the process that holds the exam."""

    def __init__(self, pipe: Any, limit: Callable[[], None]) -> None:
        self._pipe, self._limit = pipe, limit

    def run_job(self, job: bytes) -> list[Any]:
        # The ranks have limits of their own.
        faulthandler.cancel_dump_traceback_later()
        _send(self._pipe, "ranks", job)
        found = pickle.loads(self._pipe.recv_bytes())
        self._limit()
        if isinstance(found, ProcessesError):
            raise found
        result: list[Any] = found
        return result


def _send(pipe: Any, kind: str, what: Any = None) -> None:
    pipe.send_bytes(pickle.dumps((kind, what)))


def serve(paper: Paper, pipe: Any, trace: Any, seconds: float) -> None:
    """Answer what comes through the pipe until it brings None or is closed.

    Args:
        paper: who is examined.
        pipe: brings ids of checks, and :data:`ATTACH` before them.
        trace: a file for the place of a crash, or of what takes too long.
        seconds: that a regime may take; then this process ends itself.
    """

    def limit() -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=trace)

    faulthandler.enable(trace)
    use(_Asked(pipe, limit))
    checks = {check.id: check for check in registered()}
    subject = paper.subject()
    with own_settings(), _exits_told(pipe):
        while asked := pickle.loads(pipe.recv_bytes()):
            limit()
            try:
                if asked == ATTACH:
                    _send(pipe, "title", attachable(subject))
                    continue
                for answer in answers(subject, checks[asked]):
                    _send(pipe, "answer", answer)
                    limit()
                _send(pipe, "over")
            except Exception as error:
                _send(pipe, "refused", _sendable(error))
            except BaseException as error:
                _send(pipe, "ends", message_of(error))
            finally:
                faulthandler.cancel_dump_traceback_later()


def _sendable(error: Exception) -> Exception:
    """Return an error, or one of a public kind that says the same, that can be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        public = [
            cls for cls in type(error).__mro__ if cls.__module__ in ("regplug.errors", "builtins")
        ]
        for cls in public:
            try:
                return cls(str(error))  # type: ignore[no-any-return]
            except Exception:
                continue
    return error


@contextmanager
def _exits_told(pipe: Any) -> Iterator[None]:
    """Let ``os._exit``, which leaves no trace of its own, say where it was called."""
    leave, process = os._exit, os.getpid()

    def told(status: int) -> NoReturn:
        if os.getpid() == process:
            frames = reversed(traceback.extract_stack()[:-1])
            at = place((f.filename, str(f.lineno), f.name) for f in frames)
            _send(pipe, "ends", f"it ends the process: os._exit({status}) (at {at})")
        leave(status)

    os._exit = told
    try:
        yield
    finally:
        os._exit = leave
