"""The precision that formulas are computed in: at least float32, wherever the loop calls them from.

Under ``torch.autocast`` matrix products run in half precision. That is meant for the model, whose
products are many and large; in a formula it is an error of some percent.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch

from regplug.backend.private import is_any_autocast_enabled

__all__ = ["HALVES", "as_outside", "autocast_is_on", "widened", "without_autocast"]

P = ParamSpec("P")
R = TypeVar("R")

HALVES = frozenset(
    dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize < 4
)
"""The floating dtypes that are narrower than float32."""


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Return halves in float32, in which sums and small strengths survive; others as they are.

    Args:
        tensor: of any dtype.

    Returns:
        A copy in float32 if its dtype is one of :data:`regplug.HALVES`, else ``tensor`` itself.

    >>> widened(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return tensor.float() if tensor.dtype in HALVES else tensor


_DEVICES = ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "xla", "privateuseone")


def _enabled() -> list[str]:
    found = []
    for device in _DEVICES:
        try:
            if torch.is_autocast_enabled(device):
                found.append(device)
        except RuntimeError:  # a kind of device that this torch does not know
            continue
    return found


autocast_is_on: Callable[[], bool] = is_any_autocast_enabled(_enabled)
"""Whether autocast is on, for any kind of device."""


@contextmanager
def without_autocast() -> Iterator[None]:
    """Switch autocast off inside the block, for each kind of device where it is on.

    >>> with torch.autocast("cpu", torch.bfloat16), without_autocast():
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.float32
    """
    with ExitStack() as stack:
        for device in _enabled():
            # By the name that the backend has been given.
            name = torch.device(device).type if device == "privateuseone" else device
            stack.enter_context(torch.autocast(name, enabled=False))
        yield


def as_outside(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function`` so that it computes as outside of autocast: at the cost of one look."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if not autocast_is_on():
            return function(*args, **kwargs)
        with without_autocast():
            return function(*args, **kwargs)

    return wrapper
