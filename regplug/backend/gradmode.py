"""Gradient mode that comes back, wherever an interruption strikes."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["grad_off", "grad_on", "without_grad"]

P = ParamSpec("P")
R = TypeVar("R")


def _switches() -> tuple[Callable[[], None], Callable[[], None]]:
    before = torch.is_grad_enabled()
    # Made once, since that alone costs more than a microsecond; to enter one sets its mode, and
    # leaves nothing behind.
    off, on = torch.set_grad_enabled(False), torch.set_grad_enabled(True)
    torch.set_grad_enabled(before)
    return off.__enter__, on.__enter__


grad_off, grad_on = _switches()
"""Set the gradient mode of this thread, in a fifth of the time of ``torch.set_grad_enabled``."""


def without_grad(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call ``function`` with grad off.

    As ``torch.no_grad()``, but for Ctrl-C: there it leaves grad off for good if it strikes within
    that context manager's own methods.

    >>> without_grad(torch.is_grad_enabled), torch.is_grad_enabled()
    (False, True)
    """
    restore = grad_on if torch.is_grad_enabled() else grad_off
    try:
        grad_off()
        result = function(*args, **kwargs)
        restore()
    except BaseException:
        restore()
        raise
    return result
