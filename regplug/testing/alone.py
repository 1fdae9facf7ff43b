"""Something done in a copy of this process, which ends with it: :func:`alone`."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch

from regplug.testing.places import place_of
from regplug.testing.subject import Failure, Skip

__all__ = ["alone"]

SECONDS = 30.0


def alone(function: Callable[[], object]) -> None:
    """Call a function in a copy of this process, for what a process can't take back.

    Raises:
        Failure: the function raised one, or another error; or it came to no end.
        Skip: the function raised one, or processes can't be copied here.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        raise Skip("processes can't be copied on this system")
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(function, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        kind, message = ours.recv() if ours.poll(SECONDS) else ("failed", "it came to no end")
    except EOFError:
        kind, message = "failed", "it ends the process"
    finally:
        process.kill()
        process.join()
    if kind == "skipped":
        raise Skip(message)
    if kind == "failed":
        raise Failure(message)


def _call(function: Callable[[], object], pipe: Any) -> None:
    torch.set_num_threads(1)
    try:
        function()
        pipe.send(("passed", ""))
    except Skip as why:
        pipe.send(("skipped", str(why)))
    except Failure as failure:
        pipe.send(("failed", str(failure)))
    except BaseException as error:
        pipe.send(("failed", f"{type(error).__name__}: {error} (at {place_of(error)})"))
