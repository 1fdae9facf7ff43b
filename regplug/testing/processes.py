"""Two real processes in one gloo group, started once and used by every exam of this process."""

import atexit
import faulthandler
import multiprocessing
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import connection
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["RANKS", "Processes", "ProcessesError", "processes", "stop_processes"]

RANKS = 2
START_SECONDS = 180.0
JOB_SECONDS = 120.0
# What a rank is given to answer after the other has failed: it may wait for it in a collective.
GRACE_SECONDS = 3.0


class ProcessesError(RuntimeError):
    """A rank raised, died or hung; the message holds what each has to say.

    Attributes:
        raised: whether each rank raised an error of what it was given to do.
    """

    def __init__(self, message: str, *, raised: bool = False) -> None:
        super().__init__(message)
        self.raised = raised


class Processes:
    """A pool of two ranks. :meth:`run` calls a function on both.

    A job that fails on either rank may leave the other in the middle of a collective, so both are
    ended then, and started anew for the next job.
    """

    def __init__(self) -> None:
        self._processes: list[Any] = []
        self._pipes: list[Any] = []
        self._store: Any = None
        self._ready = False

    def start(self) -> None:
        """Start the processes without waiting until they are ready."""
        if self._processes:
            return
        self._store = dist.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", 0, is_master=True, wait_for_workers=False
        )
        context = multiprocessing.get_context("spawn")
        for rank in range(RANKS):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(rank, self._store.port, theirs), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._ready = False

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
        self.start()
        if not self._ready:
            answers = self._answers(START_SECONDS)
            self._require(answers, "start")
            self._ready = True
        for pipe in self._pipes:
            pipe.send((sys.path, job))
        answers = self._answers(JOB_SECONDS)
        self._require(answers, "finish")
        return [answers[rank][1] for rank in range(RANKS)]

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
                if answers[rank][0] != "done":
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        return answers

    def _require(self, answers: dict[int, tuple[str, Any]], what: str) -> None:
        if len(answers) == RANKS and all(kind == "done" for kind, _ in answers.values()):
            return
        lines = [
            f"rank {rank} {answers[rank][0]}: {answers[rank][1]}"
            if rank in answers
            else f"rank {rank} did not {what} in time"
            for rank in range(RANKS)
        ]
        self.stop()
        raised = [kind for kind, _ in answers.values()] == ["raised"] * RANKS
        raise ProcessesError("; ".join(lines), raised=raised and what == "finish")

    def stop(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
            process.close()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes, self._store = [], [], None


def _loopback() -> str | None:
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)


def _work(rank: int, port: int, pipe: Any) -> None:
    """Serve jobs until the pipe is closed."""
    faulthandler.enable()
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
            path, job = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            break
        sys.path[:] = path
        try:
            function, args = pickle.loads(job)
            torch.manual_seed(0)
            answer = ("done", function(rank, *args))
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{os.path.basename(where.filename)}:{where.lineno}"  # noqa: PTH119
            answer = ("raised", f"{type(error).__name__}: {error} (at {at})")
        pipe.send(answer)
    # Not the interpreter's own end, which waits for a peer that may be gone already.
    os._exit(0)


_shared = Processes()


def processes() -> Processes:
    """Return the pool of this process; it is ended when the process ends."""
    return _shared


def stop_processes() -> None:
    """End the pool's processes now. The next distributed check starts others."""
    _shared.stop()


atexit.register(stop_processes)
