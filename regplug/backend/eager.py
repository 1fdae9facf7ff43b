"""What ``torch.compile`` is not to trace."""

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from regplug.backend import private

__all__ = ["called_by_a_graph", "eagerly"]

P = ParamSpec("P")
R = TypeVar("R")


class _Graphs(threading.local):
    """How many compiled callers there are on this thread's stack."""

    callers = 0


_graphs = _Graphs()


def called_by_a_graph() -> bool:
    """Return whether compiled code has called the step, or the loss event, that is under way.

    Compiled code breaks its graph there, and what an event does is not traced. But a number that a
    plugin hands to the update, as a decay that it lends, is compiled anew each time it is another.

    Returns:
        True within an event of a step or a loss that a function under ``torch.compile`` takes.

    >>> called_by_a_graph()
    False
    """
    return _graphs.callers > 0


def eagerly(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function`` so that a compiled caller breaks its graph there and runs it as it is.

    Traced, step counts and strengths would be constants of the graph: each new one would compile
    anew, and after eight torch gives up. Called eagerly this costs a look at a flag.

    >>> @eagerly
    ... def double(x):
    ...     return 2 * x
    >>> double(3)
    6
    """

    @functools.wraps(function)
    def from_a_graph(*args: P.args, **kwargs: P.kwargs) -> R:
        _graphs.callers += 1
        try:
            return function(*args, **kwargs)
        finally:
            _graphs.callers -= 1

    untraced = private.untraced(from_a_graph)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return untraced(*args, **kwargs)
        return function(*args, **kwargs)

    return wrapper
