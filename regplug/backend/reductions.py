"""Being told where a program adds up tensors over ranks by itself, as loops without DDP do."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from regplug.backend.stand_ins import stand_in

__all__ = ["Reductions"]


class Reductions:
    """Calls ``summed(tensor, ranks)`` after each ``all_reduce`` that made a tensor a sum.

    It stands in for ``torch.distributed.all_reduce`` while it is on, for torch has no hook there.

    Args:
        summed: called with the tensor, and how many ranks it was summed over.
    """

    def __init__(self, summed: Callable[[torch.Tensor, int], None]) -> None:
        self._on, self._told = dist.is_available(), summed
        if self._on:
            self._undo = stand_in(dist, "all_reduce", self._listened)

    def _listened(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def listened(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(tensor, *args, **kwargs)
            if self._on and not torch.compiler.is_compiling() and result is None:
                op = args[0] if args else kwargs.get("op", dist.ReduceOp.SUM)
                group = args[1] if len(args) > 1 else kwargs.get("group")
                if op == dist.ReduceOp.SUM and isinstance(tensor, torch.Tensor):
                    self._told(tensor, dist.get_world_size(group))
            return result

        return listened

    def remove(self) -> None:
        """Listen no more. May be called twice."""
        if self._on:
            self._on = False
            self._undo()
