"""Runs of several processes that are killed at a random moment, started again and compared."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from tests.helpers.pair import Pair

HERE = Path(__file__).parent


class Run(NamedTuple):
    """A script with ``on_rank`` that goes on where it stopped, and its number of ranks."""

    script: ModuleType
    ranks: int


def start(folder: Path, steps: int, run: Run) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    log = (folder / "log").open("a")
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                str(HERE / f"{run.script.__name__.rpartition('.')[2]}.py"),
                str(folder),
                str(steps),
            ],
            stdout=log,
            stderr=log,
            env={
                **clean,
                "PYTHONPATH": str(HERE.parents[1]),
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(run.ranks),
                "LOCAL_WORLD_SIZE": str(run.ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(run.ranks)
    ]
    log.close()
    return processes


def progress(folder: Path) -> int:
    file = folder / "progress"
    return int(file.read_text() or 0) if file.exists() else 0


def kill(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()


def finish(folder: Path, steps: int, run: Run) -> str:
    processes = start(folder, steps, run)
    try:
        for process in processes:
            assert process.wait(timeout=300) == 0, (folder / "log").read_text()
    finally:
        kill(processes)
    return (folder / "result.json").read_text()


def killed(folder: Path, steps: int, seed: int, run: Run) -> int:
    """Start the run and kill it a moment after a random step that it has yet to take."""
    draw = random.Random(seed)
    done = progress(folder)
    until = draw.randint(done + 1, max(done + 1, min(done + 6, steps - 1)))
    processes = start(folder, steps, run)
    try:
        deadline = time.monotonic() + 120
        while progress(folder) < until and time.monotonic() < deadline:
            assert all(process.poll() is None for process in processes), (
                folder / "log"
            ).read_text()
            time.sleep(0.001)
        time.sleep(draw.random() * 0.05)  # in a step, in a checkpoint, in between
    finally:
        kill(processes)
    return progress(folder)


def resume(pair: Pair, folder: Path, kills: int, run: Run) -> None:
    """Compare a run that is killed ``kills`` times with one that is not."""
    steps = 20 * kills  # so many that a fast machine does not finish before the last kill
    whole, parts = folder / "whole", folder / "parts"
    whole.mkdir()
    parts.mkdir()
    pair.run(run.script.on_rank, str(whole), steps, timeout=600)
    expected = (whole / "result.json").read_text()
    for seed in range(kills):
        killed(parts, steps, seed, run)
    assert not (parts / "result.json").exists()
    assert finish(parts, steps, run) == expected
