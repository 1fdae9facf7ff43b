"""Graphs of autograd that live on, since something refers to a tensor with one."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

__all__ = ["nodes_kept"]

_NODES = 20_000  # of a graph, after which nobody counts on


def nodes_kept(thing: Any) -> int:
    """Return how many nodes of graphs are held by the tensors that ``thing`` refers to."""
    waiting: list[Any] = [t.grad_fn for t in _kept(thing) if t.grad_fn is not None]
    seen: set[Any] = set()
    while waiting and len(seen) < _NODES:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [parent for parent, _ in node.next_functions]
    return len(seen)


def _kept(thing: Any, depth: int = 4) -> Iterator[torch.Tensor]:
    """Yield the tensors that a plugin refers to by its attributes, and by those of its class."""
    if isinstance(thing, torch.Tensor):
        yield thing
    elif depth and isinstance(thing, dict):
        for value in thing.values():
            yield from _kept(value, depth - 1)
    elif depth and isinstance(thing, Iterable) and hasattr(thing, "__len__"):
        if not isinstance(thing, str | bytes) and not hasattr(thing, "parameters"):
            for value in thing:
                yield from _kept(value, depth - 1)
    elif depth and hasattr(thing, "__dict__") and not isinstance(thing, torch.nn.Module):
        for value in [*vars(thing).values(), *vars(type(thing)).values()]:
            holds = isinstance(value, torch.Tensor | dict | list | tuple | set) or depth == 4
            if holds and not callable(value):
                yield from _kept(value, depth - 1)
