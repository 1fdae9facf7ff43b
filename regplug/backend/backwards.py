"""Being told of each backward pass of a program, whoever calls it.

torch has no hook for that. ``Tensor.backward`` and whatever wraps it call
``torch.autograd.backward`` by that name, and loops that take gradients themselves call
``torch.autograd.grad``; so these two are stood in for while somebody listens. Not for sessions,
which patch nothing: for tools that look at a run for a while.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

__all__ = ["Listening"]

Before = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor] | None], Any]


class Listening:
    """Calls ``before(roots, inputs)`` and ``after(what before returned)`` around each pass.

    Args:
        before: is given the tensors that are differentiated, and those that gradients are asked
            for, None for all leaves.
        after: is called with what ``before`` returned, also where the pass raised.
    """

    def __init__(self, before: Before, after: Callable[[Any], None]) -> None:
        self._before, self._after = before, after
        self._on = True
        self._undo: list[Callable[[], None]] = []
        self._replace("backward", "inputs", 5)
        self._replace("grad", "inputs", 1)

    def remove(self) -> None:
        """Listen no more. May be called twice."""
        self._on = False
        while self._undo:
            self._undo.pop()()

    def _replace(self, name: str, asked: str, place: int) -> None:
        original = getattr(torch.autograd, name)

        @functools.wraps(original)
        def listened(*args: Any, **kwargs: Any) -> Any:
            if not self._on or torch.compiler.is_compiling():
                return original(*args, **kwargs)
            # A generator can be gone through once, and that is torch's.
            args = tuple(map(_kept, args))
            kwargs = {key: _kept(value) for key, value in kwargs.items()}
            first = args[0] if args else kwargs.get("tensors", kwargs.get("outputs"))
            inputs = args[place] if len(args) > place else kwargs.get(asked)
            token = self._before(_tensors(first), None if inputs is None else _tensors(inputs))
            try:
                return original(*args, **kwargs)
            finally:
                self._after(token)

        def undo() -> None:
            # Somebody may have put a function of their own around this one since.
            if getattr(torch.autograd, name) is listened:
                setattr(torch.autograd, name, original)

        setattr(torch.autograd, name, listened)
        self._undo.append(undo)


def _kept(given: Any) -> Any:
    return list(given) if isinstance(given, Iterator) else given


def _tensors(given: Any) -> Sequence[torch.Tensor]:
    """Return one tensor, a sequence of them, or edges of a graph, as a list of tensors."""
    if isinstance(given, Mapping):
        given = given.values()
    several = [given] if isinstance(given, torch.Tensor) else list(given or ())
    return [tensor for tensor in several if isinstance(tensor, torch.Tensor)]
