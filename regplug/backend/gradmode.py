"""Gradient mode that comes back, wherever an interruption strikes."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["without_grad"]

P = ParamSpec("P")
R = TypeVar("R")


def without_grad(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call ``function`` with grad off.

    As ``torch.no_grad()``, but for Ctrl-C: there it leaves grad off for good if it strikes within
    that context manager's own methods.

    >>> without_grad(torch.is_grad_enabled), torch.is_grad_enabled()
    (False, True)
    """
    grad = torch.is_grad_enabled()
    try:
        torch.set_grad_enabled(False)
        result = function(*args, **kwargs)
        torch.set_grad_enabled(grad)
    except BaseException:
        torch.set_grad_enabled(grad)
        raise
    return result
