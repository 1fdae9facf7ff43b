"""Worker processes in one real group of gloo or NCCL, started once and used by many tests.

``Pair.run(function, *args)`` calls ``function(rank, *args)`` in each process and returns the list
of results. ``function`` stands at the top of a module. A rank that raises, and one that hangs
beyond the time-out, fail the test with the trace of every rank; the processes are then started
anew for the next one.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.helpers.accelerating import forget_accelerate


class WorkerError(AssertionError):
    """A rank raised or hung; the message holds the traces."""


class Pair:
    """``size`` processes with one process group.

    Args:
        size: how many.
        group: whether they make the process group at once, or leave that to what they run.
        device: ``"cpu"``, or ``"cuda"`` for a GPU each and NCCL.
    """

    def __init__(self, size: int = 2, *, group: bool = True, device: str = "cpu") -> None:
        self.size, self.group, self.device = size, group, device
        self._processes: list[Any] = []

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 90.0) -> list[Any]:
        """Return what ``function(rank, *args)`` returned on each rank."""
        self._start()
        for pipe in self._pipes:
            pipe.send((function.__module__, function.__qualname__, args, sys.path))
        deadline = time.monotonic() + timeout
        answers: dict[int, tuple[str, Any]] = {}
        while len(answers) < self.size and time.monotonic() < deadline:
            for rank, pipe in enumerate(self._pipes):
                if rank not in answers and pipe.poll(0.005):
                    try:
                        answers[rank] = pipe.recv()
                    except (EOFError, ConnectionResetError):
                        answers[rank] = ("died", "the process ended")
            if any(kind != "ok" for kind, _ in answers.values()):
                # The others wait for the one that failed: give them a moment to say so.
                deadline = min(deadline, time.monotonic() + 5)
        if len(answers) == self.size and all(kind == "ok" for kind, _ in answers.values()):
            return [answers[rank][1] for rank in range(self.size)]
        told = [f"{function.__module__}.{function.__qualname__}{args!r}"]
        for rank in range(self.size):
            told.append(f"--- rank {rank}: {answers.get(rank, ('hangs', ''))[0]}")
            told.append(str(answers[rank][1]) if rank in answers else self._stack(rank))
        self.stop()
        raise WorkerError("\n".join(told))

    def _start(self) -> None:
        if self._processes:
            return
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._pipes = []
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work,
                args=(
                    rank,
                    self.size,
                    self._store.port,
                    theirs,
                    self._trace(rank),
                    self.group,
                    self.device,
                ),
                daemon=True,
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(90) or pipe.recv() != "ready":
                self.stop()
                raise WorkerError(f"rank {rank} did not start")

    def _trace(self, rank: int) -> str:
        return str(Path(self._folder.name) / f"stack-{rank}")

    def _stack(self, rank: int) -> str:
        os.kill(self._processes[rank].pid, signal.SIGUSR1)
        time.sleep(0.3)
        return Path(self._trace(rank)).read_text()

    def stop(self) -> None:
        """End the processes; the next ``run`` starts others."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        if self._processes:
            self._folder.cleanup()
            del self._store
        self._processes = []


def _work(rank: int, size: int, port: int, pipe: Any, trace: str, group: bool, device: str) -> None:
    stack = Path(trace).open("w")  # noqa: SIM115 (open as long as the process lives)
    faulthandler.register(signal.SIGUSR1, file=stack)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
        TORCHELASTIC_USE_AGENT_STORE="True",  # the store stands already, in the parent
        OMP_NUM_THREADS="1",
    )
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    else:
        torch.cuda.set_device(rank)
    torch.set_num_threads(1)
    if group:
        backend = "gloo" if device == "cpu" else "nccl"
        dist.init_process_group(backend, timeout=timedelta(seconds=60))
    pipe.send("ready")
    while True:
        try:
            module, name, args, path = pipe.recv()
        except EOFError:
            break
        sys.path[:] = path
        try:
            __import__(module)
            function = getattr(sys.modules[module], name)
            torch.manual_seed(0)
            pipe.send(("ok", function(rank, *args)))
        except BaseException:
            pipe.send(("raises", traceback.format_exc()))
        finally:
            if "accelerate" in sys.modules:
                forget_accelerate()
    os._exit(0)
