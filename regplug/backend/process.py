"""What torch and Python hardly tell of a process: its modes, its default device, what ends it."""

import atexit
from collections.abc import Callable
from typing import Any

import torch

__all__ = [
    "autograd_has_threads",
    "default_device",
    "exit_callbacks",
    "modes_entered",
    "saved_tensors_hooks",
]

_COUNT = "_ncallbacks"
_MODES = ("_len_torch_function_stack", "_len_torch_dispatch_stack")


def autograd_has_threads() -> bool | None:
    """Return whether backward passes may use threads of their own, None where unknown.

    >>> autograd_has_threads() in (True, None)
    True
    """
    asked: Callable[[], bool] | None = getattr(torch._C, "_is_multithreading_enabled", None)
    return None if asked is None else asked()


def exit_callbacks() -> int | None:
    """Return how many functions are called at the end of the process, None if it can't be known.

    >>> exit_callbacks() is None or exit_callbacks() >= 0
    True
    """
    count: Callable[[], int] | None = getattr(atexit, _COUNT, None)
    return None if count is None else count()


def modes_entered() -> tuple[int | None, ...]:
    """Return how many of torch's function and dispatch modes are entered, None where unknown.

    >>> modes_entered()[0] in (0, 1, None)
    True
    """
    core: Any = getattr(torch, "_C", None)
    counts = [getattr(core, name, None) for name in _MODES]
    return tuple(None if count is None else int(count()) for count in counts)


def saved_tensors_hooks() -> tuple[Any, ...] | None:
    """Return the hooks that are called for every tensor that autograd saves, None without any.

    >>> saved_tensors_hooks() is None
    True
    """
    try:
        found: tuple[Any, ...] | None = torch._C._autograd._top_saved_tensors_default_hooks(False)
    except (AttributeError, TypeError):
        return None
    return found


def default_device() -> str:
    """Return where torch makes tensors now.

    Asked of a tensor: torch 2.6 fails to say it once a default was taken back.

    >>> default_device()
    'cpu'
    """
    return str(torch.empty(0).device)
