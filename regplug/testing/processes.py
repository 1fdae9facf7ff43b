"""Two real processes in one gloo group, started once and used by every exam of this process."""

import atexit
import faulthandler
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import connection
from typing import Any

import torch
import torch.distributed as dist

from regplug.testing.places import place_in, place_of, redirected

__all__ = [
    "RANKS",
    "Processes",
    "ProcessesError",
    "Ranks",
    "processes",
    "start_processes",
    "stop_processes",
    "use",
]

RANKS = 2
START_SECONDS = 180.0
JOB_SECONDS = 45.0
# What a rank is given to answer after the other has failed: it may wait for it in a collective.
GRACE_SECONDS = 3.0
# The same after the other is done, which has just as much to do.
BEHIND_SECONDS = 20.0
NOT_STARTED = (
    "the two processes in which the exam trains on ranks did not start, which is no fault of the "
    'plugin\'s: {}. A script that examines needs `if __name__ == "__main__":` before that, since '
    "each of them imports it anew"
)


class ProcessesError(RuntimeError):
    """A rank raised, died or hung; the message holds what each has to say.

    Attributes:
        raised: whether each rank raised an error of what it was given to do.
        ended: whether a rank died, or did not come to an end in time.
    """

    def __init__(self, message: str, *, raised: bool = False, ended: bool = False) -> None:
        super().__init__(message, raised, ended)
        self.message, self.raised, self.ended = message, raised, ended

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> Any:
        return _error, (self.message, self.raised, self.ended)


def _error(message: str, raised: bool, ended: bool) -> ProcessesError:
    return ProcessesError(message, raised=raised, ended=ended)


class Ranks:
    """Two ranks, wherever they are."""

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Return what ``function(rank, *args)`` returned on each rank.

        Raises:
            ProcessesError: a rank raised, died, or took too long; both processes are ended then.
        """
        try:
            job = pickle.dumps((function, args))
        except Exception as error:
            raise ProcessesError(
                "the plugin can't be sent to another process: give a spec, or a class, function or "
                f"functools.partial that stands at the top of a module ({error})"
            ) from error
        return self.run_job(job)

    def run_job(self, job: bytes) -> list[Any]:
        """Do the same for a function and its arguments that are pickled already."""
        raise NotImplementedError


class Processes(Ranks):
    """A pool of two ranks. :meth:`run` calls a function on both.

    A job that fails on either rank may leave the other in the middle of a collective, so both are
    ended then, and started anew for the next job.
    """

    def __init__(self) -> None:
        self._processes: list[Any] = []
        self._pipes: list[Any] = []
        self._store: Any = None
        self._traces: list[str] = []
        self._ready = False

    def start(self) -> None:
        """Start the processes without waiting until they are ready."""
        if self._processes and all(process.is_alive() for process in self._processes):
            return
        self.stop()  # one has died between two jobs, of what a plugin has left there
        self._store = dist.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", 0, is_master=True, wait_for_workers=False
        )
        context = multiprocessing.get_context("spawn")
        for rank in range(RANKS):
            ours, theirs = context.Pipe()
            handle, trace = tempfile.mkstemp(prefix="regplug-rank-")
            os.close(handle)
            self._traces.append(trace)
            process = context.Process(
                target=_work, args=(rank, self._store.port, theirs, trace), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._ready = False

    def run_job(self, job: bytes) -> list[Any]:
        self._get_ready()
        try:
            self._send(job)
        except OSError:
            self.stop()
            self._get_ready()
            self._send(job)
        answers = self._answers(JOB_SECONDS)
        self._require(answers, "finish")
        return [answers[rank][1] for rank in range(RANKS)]

    def _get_ready(self) -> None:
        self.start()
        if not self._ready:
            answers = self._answers(START_SECONDS)
            self._require(answers, "start")
            self._ready = True

    def _send(self, job: bytes) -> None:
        for pipe in self._pipes:
            pipe.send((sys.path, job, JOB_SECONDS))

    def _answers(self, seconds: float) -> dict[int, tuple[str, Any]]:
        deadline = time.monotonic() + seconds
        answers: dict[int, tuple[str, Any]] = {}
        while len(answers) < RANKS and time.monotonic() < deadline:
            waiting = [pipe for rank, pipe in enumerate(self._pipes) if rank not in answers]
            ready = connection.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
            for rank, pipe in enumerate(self._pipes):
                if pipe not in ready:
                    continue
                try:
                    answers[rank] = pipe.recv()
                except (EOFError, ConnectionResetError):
                    answers[rank] = ("died", "the process ended")
                left = BEHIND_SECONDS if answers[rank][0] == "done" else GRACE_SECONDS
                deadline = min(deadline, time.monotonic() + left)
        return answers

    def _require(self, answers: dict[int, tuple[str, Any]], what: str) -> None:
        if len(answers) == RANKS and all(kind == "done" for kind, _ in answers.values()):
            return
        kinds = [answers[rank][0] if rank in answers else "waits" for rank in range(RANKS)]
        # A rank that waits for one that has failed is not to blame.
        waits = "waits" in kinds and "raised" not in kinds
        ended = waits or bool({"died", "ended"} & set(kinds))
        lines = []
        for rank, kind in enumerate(kinds):
            at = place_in(self._traces[rank]) if kind in ("waits", "died") else None
            where = "" if at is None else f" (at {at})"
            if kind == "waits":
                lines.append(f"rank {rank} did not {what} in time{where}")
            elif kind == "done":
                lines.append(f"rank {rank} is done")
            else:
                lines.append(f"rank {rank} {kind}: {answers[rank][1]}{where}")
        self.stop()
        if what == "start":
            raise ProcessesError(NOT_STARTED.format("; ".join(lines)), ended=True)
        raised = kinds == ["raised"] * RANKS
        raise ProcessesError("; ".join(lines), raised=raised, ended=ended)

    def stop(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
            process.close()
        for pipe in self._pipes:
            pipe.close()
        for trace in self._traces:
            os.unlink(trace)  # noqa: PTH108
        self._processes, self._pipes, self._traces, self._store = [], [], [], None


def _loopback() -> str | None:
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)


def _work(rank: int, port: int, pipe: Any, trace: str) -> None:
    """Serve jobs until the pipe is closed; leave the place of a crash or a wait in ``trace``."""
    # What a plugin prints must not come between the lines of a report.
    with open(trace, "w", encoding="utf-8") as file, redirected(tempfile.TemporaryFile()):  # noqa: PTH123
        faulthandler.enable(file)
        _serve(rank, port, pipe, file)
        faulthandler.disable()
    # Not the interpreter's own end, which waits for a peer that may be gone already.
    os._exit(0)


def _serve(rank: int, port: int, pipe: Any, trace: Any) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(RANKS),
        LOCAL_WORLD_SIZE=str(RANKS),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",  # the store stands in the parent
    )
    if (interface := _loopback()) is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=JOB_SECONDS))
        pipe.send(("done", None))
    except Exception as error:
        pipe.send(("raised", f"{type(error).__name__}: {error}"))
        return
    while True:
        try:
            path, job, seconds = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            break
        sys.path[:] = path
        trace.seek(0)
        trace.truncate()
        # Early enough that its place is written when the others give it up.
        waits = min(seconds, BEHIND_SECONDS) * 0.75
        faulthandler.dump_traceback_later(waits, repeat=True, file=trace)
        try:
            function, args = pickle.loads(job)
            torch.manual_seed(0)
            answer = ("done", function(rank, *args))
        except BaseException as error:
            kind = "raised" if isinstance(error, Exception) else "ended"
            answer = (kind, f"{type(error).__name__}: {error} (at {place_of(error)})")
        finally:
            faulthandler.cancel_dump_traceback_later()
        pipe.send(answer)


_shared = Processes()
_used: Ranks = _shared


def processes() -> Ranks:
    """Return the ranks that this process uses: by default a pool, ended when the process ends."""
    return _used


def use(ranks: Ranks) -> None:
    """Let :func:`processes` return others from now on."""
    global _used  # noqa: PLW0603
    _used = ranks


def start_processes() -> Processes:
    """Start this process's pool without waiting until it is ready, and return it."""
    _shared.start()
    return _shared


def stop_processes() -> None:
    """End the pool's processes now. The next distributed check starts others."""
    _shared.stop()


atexit.register(stop_processes)
