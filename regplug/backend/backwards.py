"""Being told of each backward pass of a program, whoever calls it.

torch has no hook for that. ``Tensor.backward`` and whatever wraps it call
``torch.autograd.backward`` by that name, and loops that take gradients themselves call
``torch.autograd.grad``; so these two are stood in for while somebody listens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from regplug.backend.stand_ins import stand_in

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
        self._undo: list[Callable[[], None]] = [
            stand_in(torch.autograd, "backward", lambda original: self._listened(original, 5)),
            stand_in(torch.autograd, "grad", lambda original: self._listened(original, 1)),
        ]

    def remove(self) -> None:
        """Listen no more. May be called twice."""
        self._on = False
        while self._undo:
            self._undo.pop()()

    def _listened(self, original: Callable[..., Any], place: int) -> Callable[..., Any]:
        """Return what stands in for ``original``, whose inputs are at ``place``."""

        def listened(*args: Any, **kwargs: Any) -> Any:
            if not self._on or torch.compiler.is_compiling():
                return original(*args, **kwargs)
            # A generator can be gone through once, and that is torch's.
            args = tuple(map(_kept, args))
            kwargs = {key: _kept(value) for key, value in kwargs.items()}
            first = args[0] if args else kwargs.get("tensors", kwargs.get("outputs"))
            inputs = args[place] if len(args) > place else kwargs.get("inputs")
            token = self._before(_tensors(first), None if inputs is None else _tensors(inputs))
            try:
                return original(*args, **kwargs)
            finally:
                self._after(token)

        return listened


def _kept(given: Any) -> Any:
    return list(given) if isinstance(given, Iterator) else given


def _tensors(given: Any) -> Sequence[torch.Tensor]:
    """Return one tensor, a sequence of them, or edges of a graph, as a list of tensors."""
    if isinstance(given, Mapping):
        given = given.values()
    several = [given] if isinstance(given, torch.Tensor) else list(given or ())
    return [tensor for tensor in several if isinstance(tensor, torch.Tensor)]
