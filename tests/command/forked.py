"""Scripts run in fresh processes that have torch imported already, so that each costs little.

A fork server imports torch and regplug once and forks for each run; nothing of one run is seen by
the next, and nothing of the tests' own process by any.
"""

import multiprocessing
import os
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "torch._dynamo",
        "accelerate",
        "regplug.command.cli",
        "regplug.command.run.attaching",
        "regplug_builtins.l1",
    ]
)


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    out: str
    err: str


def command(*arguments: object, cwd: Path, timeout: float = 120) -> Ended:
    """Run ``regplug`` with these arguments, as its console script does."""
    return _forked(_command, [str(a) for a in arguments], cwd, timeout)


def plain(script: Path, *arguments: object, cwd: Path, timeout: float = 120) -> Ended:
    """Run ``python script arguments``, without ``regplug run``."""
    return _forked(_plain, [str(script), *map(str, arguments)], cwd, timeout)


def _forked(target, arguments, cwd, timeout):
    out, err = cwd / "stdout.txt", cwd / "stderr.txt"
    process = _CONTEXT.Process(target=target, args=(arguments, str(cwd), str(out), str(err)))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"{arguments} did not end:\n{out.read_text()}{err.read_text()}")
    return Ended(process.exitcode, out.read_text(), err.read_text())


def _prepare(cwd, out, err):
    os.chdir(cwd)
    for path, descriptor in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    # Line by line, so that what was told is there whatever the process ends in.
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def _command(arguments, *where):
    _prepare(*where)
    from regplug.command.cli import main

    sys.argv = ["regplug", *arguments]
    sys.exit(main(arguments))


def _plain(arguments, *where):
    _prepare(*where)
    sys.argv = arguments
    sys.path.insert(0, str(Path(__file__).parent / "scripts"))
    runpy.run_path(arguments[0], run_name="__main__")
