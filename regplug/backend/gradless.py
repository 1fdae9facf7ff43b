"""Being told where a program begins to compute without gradients, as evaluations do."""

import sys
from collections.abc import Callable
from typing import Any

import torch

from regplug.backend.stand_ins import stand_in

__all__ = ["Gradless"]


class Gradless:
    """Calls ``begins()`` wherever the program, and not torch itself, enters ``no_grad``.

    It stands in for how ``torch.no_grad`` and ``torch.inference_mode`` are entered while it is on.

    Args:
        begins: called before.
    """

    def __init__(self, begins: Callable[[], None]) -> None:
        self._on, self._begins = True, begins
        self._undo: list[Callable[[], None]] = [
            stand_in(kind, "__enter__", self._listened)
            for kind in (torch.no_grad, torch.inference_mode)
        ]

    def _listened(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def listened(entered: Any) -> Any:
            if self._on and not _is_torchs(sys._getframe(1)):
                self._begins()
            return original(entered)

        return listened

    def remove(self) -> None:
        """Listen no more. May be called twice."""
        self._on = False
        while self._undo:
            self._undo.pop()()


def _is_torchs(frame: Any) -> bool:
    """Whether a function of torch's, or of regplug's, enters; of a decorated one, whose it is."""
    name = frame.f_globals.get("__name__", "")
    if name == "torch.utils._contextlib":
        function = frame.f_locals.get("func")
        name = getattr(function, "__module__", None) or ""
    return name.partition(".")[0] in ("torch", "regplug")
