"""The settings of a process that a plugin could leave otherwise: read, and set back."""

import gc
import locale
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from regplug.backend.process import (
    autograd_has_threads,
    default_device,
    exit_callbacks,
    modes_entered,
    saved_tensors_hooks,
)

__all__ = ["KNOBS", "ODD", "SETTLED_LATER", "USUAL", "Knob", "readings", "set_back"]

Knob = tuple[Callable[[], Any], Callable[[Any], object] | None]
"""How a setting is read, and how it is set; None where it can't be."""


def _deterministic(value: int) -> None:
    torch.set_deterministic_debug_mode(value)


def _default_device(value: str) -> None:
    # To name the CPU would enter a mode that was not entered before.
    torch.set_default_device(None if value == "cpu" else value)


def _flushes() -> bool:
    """Whether the smallest numbers are taken for 0."""
    return float((torch.tensor(1e-40) * 1.0).item()) == 0.0


def _list(values: list[Any]) -> Knob:
    def put(before: list[Any]) -> None:
        values[:] = before

    return lambda: list(values), put


def _variables() -> dict[str, str]:
    # Its compiler tells its processes where its files are.
    return {name: value for name, value in os.environ.items() if "INDUCTOR" not in name}


def _environment(before: dict[str, str]) -> None:
    for name in set(_variables()) - set(before):
        del os.environ[name]
    os.environ.update(before)


def _signals() -> dict[int, Any]:
    return {int(s): signal.getsignal(s) for s in signal.valid_signals()}


def _put_signals(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)


LOGGERS = ("", "regplug", "py.warnings")


def _loggers() -> dict[str, tuple[Any, ...]]:
    found = {}
    for name in LOGGERS:
        logger = logging.getLogger(name)
        found[name or "root"] = (
            logger.level,
            logger.propagate,
            logger.disabled,
            list(logger.handlers),
            list(logger.filters),
        )
    return found


def _put_loggers(before: dict[str, tuple[Any, ...]]) -> None:
    for name in LOGGERS:
        logger = logging.getLogger(name)
        level, logger.propagate, logger.disabled, handlers, filters = before[name or "root"]
        logger.setLevel(level)
        logger.handlers[:], logger.filters[:] = handlers, filters


def _filters(before: list[Any]) -> None:
    # Another list each time that warnings are caught.
    warnings.filters[:] = before  # type: ignore[index]


def _backend(module: Any, name: str) -> Knob:
    return lambda: getattr(module, name), lambda value: setattr(module, name, value)


def _numpy() -> Any:
    numpy = sys.modules.get("numpy")
    return None if numpy is None else (numpy.geterr(), numpy.get_printoptions())


def _put_numpy(before: Any) -> None:
    numpy = sys.modules.get("numpy")
    if numpy is not None and before is not None:
        numpy.seterr(**before[0])


def _children() -> set[str]:
    """Return the processes that this one has started, where the system tells."""
    found = Path("/proc/self/task").glob("*/children")
    return {number for file in found for number in file.read_text(encoding="ascii").split()}


def _alarm() -> bool:
    """Whether the process will be woken, or ended, by a signal some time from now."""
    return any(signal.getitimer(t)[0] for t in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL))


def _set_alarm(on: bool) -> None:
    if not on:
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL):
            signal.setitimer(timer, 0)


def _threads(number: int) -> None:
    # In a copy of a process that has threads of OpenMP, more than one would wait for ever.
    if number == 1 or multiprocessing.parent_process() is None:
        torch.set_num_threads(number)


KNOBS: dict[str, Knob] = {
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (default_device, _default_device),
    "gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "inference mode": (torch.is_inference_mode_enabled, None),
    "torch's modes": (modes_entered, None),
    "the hooks of all tensors that autograd saves": (saved_tensors_hooks, None),
    "autograd's threads": (autograd_has_threads, torch.autograd.set_multithreading_enabled),
    "anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "torch.use_deterministic_algorithms": (torch.get_deterministic_debug_mode, _deterministic),
    "the precision of matrix products": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "torch.backends.cudnn.enabled": _backend(torch.backends.cudnn, "enabled"),
    "torch.backends.cudnn.benchmark": _backend(torch.backends.cudnn, "benchmark"),
    "torch.backends.cudnn.deterministic": _backend(torch.backends.cudnn, "deterministic"),
    "torch.backends.mkldnn.enabled": _backend(torch.backends.mkldnn, "enabled"),
    "flash attention": (
        torch.backends.cuda.flash_sdp_enabled,
        torch.backends.cuda.enable_flash_sdp,
    ),
    "attention that saves memory": (
        torch.backends.cuda.mem_efficient_sdp_enabled,
        torch.backends.cuda.enable_mem_efficient_sdp,
    ),
    "what torch.load takes for safe": (
        lambda: len(torch.serialization.get_safe_globals()),
        None,
    ),
    "how processes share tensors": (
        torch.multiprocessing.get_sharing_strategy,
        torch.multiprocessing.set_sharing_strategy,
    ),
    "the number of torch's threads": (torch.get_num_threads, _threads),
    "the flushing of denormal numbers": (_flushes, torch.set_flush_denormal),
    "autocast on CPUs": (
        lambda: torch.is_autocast_enabled("cpu"),
        lambda value: torch.set_autocast_enabled("cpu", value),
    ),
    "autocast's dtype on CPUs": (
        lambda: torch.get_autocast_dtype("cpu"),
        lambda value: torch.set_autocast_dtype("cpu", value),
    ),
    "autocast on CUDA": (
        lambda: torch.is_autocast_enabled("cuda"),
        lambda value: torch.set_autocast_enabled("cuda", value),
    ),
    "how torch prints tensors": (lambda: str(torch.tensor([1 / 3, 1e-7])), None),
    "numpy's settings": (_numpy, _put_numpy),
    "the warning filters": (lambda: list(warnings.filters), _filters),
    "the environment variables": (_variables, _environment),
    "the working directory": (os.getcwd, os.chdir),
    "sys.path": _list(sys.path),
    "sys.meta_path": _list(sys.meta_path),
    "sys.path_hooks": _list(sys.path_hooks),
    "the signal handlers": (_signals, _put_signals),
    "whether an alarm is set (signal.alarm)": (_alarm, _set_alarm),
    "the processes that this one has started": (_children, None),
    "the loggers": (_loggers, _put_loggers),
    "logging.disable": (lambda: logging.root.manager.disable, logging.disable),
    "sys.excepthook": _backend(sys, "excepthook"),
    "sys.displayhook": _backend(sys, "displayhook"),
    "sys.unraisablehook": _backend(sys, "unraisablehook"),
    "sys.stdout": _backend(sys, "stdout"),
    "sys.stderr": _backend(sys, "stderr"),
    "the limit of recursion": (sys.getrecursionlimit, sys.setrecursionlimit),
    "sys.settrace": (sys.gettrace, sys.settrace),
    "sys.setprofile": (sys.getprofile, sys.setprofile),
    "sys.setswitchinterval": (sys.getswitchinterval, sys.setswitchinterval),
    "threading.stack_size": (threading.stack_size, threading.stack_size),
    "threading.excepthook": _backend(threading, "excepthook"),
    "the garbage collector": (gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
    "the garbage collector's thresholds": (gc.get_threshold, lambda t: gc.set_threshold(*t)),
    "gc.callbacks": _list(gc.callbacks),
    "the locale": (lambda: locale.setlocale(locale.LC_ALL), None),
    "the default timeout of sockets": (socket.getdefaulttimeout, socket.setdefaulttimeout),
    "what is called at the end of the process": (exit_callbacks, None),
}
"""Each setting by its name in words."""


# The exam sets these for its own time; the other is counted up by much that is imported.
SETTLED_LATER = (
    "what is called at the end of the process",
    "the warning filters",
    "the number of torch's threads",
    "gradient mode",
    "the processes that this one has started",
)

USUAL: dict[str, Any] = {
    "torch's default dtype": torch.float32,
    "torch.use_deterministic_algorithms": 0,
    "the precision of matrix products": "highest",
    "torch.backends.cudnn.benchmark": False,
    "torch.backends.cudnn.deterministic": False,
    "anomaly detection": False,
    "the warning filters": [("default", None, Warning, None, 0)],
    "logging.disable": 0,
}
"""Settings as a process begins, of those that a plugin that was attached before may have set."""

ODD: dict[str, Any] = {
    "torch's default dtype": torch.float64,
    "torch.use_deterministic_algorithms": 1,
    "the precision of matrix products": "high",
    "torch.backends.cudnn.benchmark": True,
    "torch.backends.cudnn.deterministic": True,
    "the number of torch's threads": 2,
    "the warning filters": [("error", None, BytesWarning, None, 7)],
    "the limit of recursion": 2345,
    "the garbage collector's thresholds": (801, 11, 9),
    "the default timeout of sockets": 99.0,
    "logging.disable": 5,
    "autocast's dtype on CPUs": torch.float16,
}
"""Settings that hardly anyone sets to just this."""


def readings() -> dict[str, Any]:
    """Return what each setting is now."""
    found = {}
    for name, (read, _) in KNOBS.items():
        # What this torch does not let be read, it does not let be changed by mistake either.
        with suppress(AttributeError, RuntimeError, TypeError, OSError):
            found[name] = read()
    return found


def set_back(before: dict[str, Any]) -> None:
    """Set everything that is not as in ``before`` to what it was, as far as it can be set."""
    now = readings()
    for name, value in before.items():
        put = KNOBS[name][1]
        if put is not None and now.get(name) != value:
            put(value)
