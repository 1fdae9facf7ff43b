"""Being told where a program adds up tensors over ranks by itself, as loops without DDP do."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["Reductions"]


class Reductions:
    """Calls ``summed(tensor, ranks)`` after each ``all_reduce`` that made a tensor a sum.

    It stands in for ``torch.distributed.all_reduce`` while it is on, for torch has no hook there.

    Args:
        summed: called with the tensor, and how many ranks it was summed over.
    """

    def __init__(self, summed: Callable[[torch.Tensor, int], None]) -> None:
        self._on = dist.is_available()
        if not self._on:
            return
        original = dist.all_reduce

        @functools.wraps(original)
        def listened(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(tensor, *args, **kwargs)
            if self._on and not torch.compiler.is_compiling() and result is None:
                op = args[0] if args else kwargs.get("op", dist.ReduceOp.SUM)
                group = args[1] if len(args) > 1 else kwargs.get("group")
                if op == dist.ReduceOp.SUM and isinstance(tensor, torch.Tensor):
                    summed(tensor, dist.get_world_size(group))
            return result

        self._undo = (original, listened)
        dist.all_reduce = listened

    def remove(self) -> None:
        """Listen no more. May be called twice."""
        if self._on:
            self._on = False
            original, listened = self._undo
            if dist.all_reduce is listened:
                dist.all_reduce = original
