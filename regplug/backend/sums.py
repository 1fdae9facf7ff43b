"""Sums over weights of which each rank holds a part."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

from regplug.backend.fragments import Fragment
from regplug.backend.shards import is_dtensor, spread_over
from regplug.errors import SpecError

__all__ = ["Sum", "added_up", "resolve", "shard_groups", "summed", "total", "wide"]


class Sum:
    """A sum over weights, of which each rank has computed its own part.

    The session adds the parts up over the ranks, all sums of all plugins in one collective per
    process group, and over those dimensions of the mesh only along which parts differ: what is
    replicated counts once.

    Args:
        terms: pairs of a parameter and a number or 0-d tensor, the sum over this rank's part of it.
        factor: what the total is multiplied by.
        everywhere: whether to add up over all ranks of a mesh, whatever they hold: for what each
            has found by itself, of which it matters only whether it is 0.

    >>> w = torch.nn.Parameter(torch.tensor([[1.0, 0.0]]))
    >>> resolve([Sum([(w, (w == 0).sum())], factor=0.5)])
    [0.5]
    """

    def __init__(
        self,
        terms: Iterable[tuple[torch.Tensor, torch.Tensor | float]],
        factor: float = 1.0,
        *,
        everywhere: bool = False,
    ) -> None:
        self.factor = factor
        self.by_groups: dict[tuple[Any, ...], list[tuple[torch.Tensor | float, torch.device]]] = {}
        for parameter, term in terms:
            plain = term.detach() if isinstance(term, torch.Tensor) else term
            groups = shard_groups(parameter, everywhere=everywhere)
            self.by_groups.setdefault(groups, []).append((plain, parameter.device))


def summed(parameters: Sequence[torch.Tensor], terms: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return sums over whole parameters, of which each rank has computed its own part.

    Unlike :class:`Sum` it does not leave the device, so that a plugin may ask in a step: one
    collective per process group for all of them, none for what is not sharded. All ranks must ask
    for the same parameters.

    Args:
        parameters: one for each term.
        terms: tensors of one shape, each computed of :func:`regplug.local` of its parameter.

    Returns:
        The sums, stacked, on the device of the first parameter; in float64 (float32 where the
        device has no float64), or in integers if the terms are.

    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> summed([w], [w.detach().square().sum()])
    tensor([25.], dtype=torch.float64)
    """
    device = parameters[0].device
    there = [term.detach().to(device, non_blocking=True) for term in terms]
    total = torch.stack([t if not t.is_floating_point() else wide(t) for t in there])
    by_groups: dict[tuple[Any, ...], list[int]] = {}
    for row, parameter in enumerate(parameters):
        if groups := shard_groups(parameter):
            by_groups.setdefault(groups, []).append(row)
    for groups, rows in by_groups.items():
        whole = len(rows) == len(parameters)
        part = total if whole else torch.stack([total[row] for row in rows])
        for group in groups:
            dist.all_reduce(part, group=group)
        if not whole:
            for place, row in enumerate(rows):
                total[row] = part[place]
    return total


def total(terms: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Return one sum over all parameters, as :func:`summed` does for each: for counts, say.

    Args:
        terms: pairs of a parameter and a tensor, computed of :func:`regplug.local` of it; all of
            one shape. Any iterable, of which one is in memory at a time.

    Returns:
        Their sum, on the device of the first parameter, in the dtype that :func:`summed` has.

    Raises:
        SpecError: there is no parameter.

    >>> w = torch.nn.Parameter(torch.tensor([3.0, 0.0]))
    >>> total((p, torch.bincount((p == 0).long(), minlength=2)) for p in (w, w))
    tensor([2, 2])
    """
    by_groups: dict[tuple[Any, ...], torch.Tensor] = {}
    device = None
    for parameter, term in terms:
        device = parameter.device if device is None else device
        groups, there = shard_groups(parameter), term.detach().to(device, non_blocking=True)
        there = wide(there) if there.is_floating_point() else there
        known = by_groups.get(groups)
        by_groups[groups] = there.clone() if known is None else known.add_(there)
    if not by_groups:
        raise SpecError("total(terms) is of one parameter at least")
    for groups, part in by_groups.items():
        for group in groups:
            dist.all_reduce(part, group=group)
    first, *others = by_groups.values()
    for other in others:
        first = first + other
    return first


def shard_groups(parameter: torch.Tensor, *, everywhere: bool = False) -> tuple[Any, ...]:
    """Return the process groups over whose ranks the parts of ``parameter`` are spread."""
    if type(parameter) is Fragment:
        return (parameter.group,)
    if not is_dtensor(parameter):
        return ()
    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    dims = range(mesh.ndim) if everywhere else spread_over(parameter)
    return tuple(mesh.get_group(dim) for dim in dims)


def resolve(sums: Sequence[Sum]) -> list[float]:
    """Return the totals over all ranks, with one collective per process group for all together."""
    totals = [0.0] * len(sums)
    keys = list(dict.fromkeys(key for total in sums for key in total.by_groups))
    for groups in keys:
        terms_of_sums = [total.by_groups.get(groups, ()) for total in sums]
        # Added up in the host's memory: some devices have no float64.
        vector = torch.tensor(_summed(terms_of_sums), dtype=torch.float64, device="cpu")
        if groups:
            device = next(device for terms in terms_of_sums for _, device in terms)
            vector = vector.to(device, _widest(device))
        for group in groups:
            dist.all_reduce(vector, group=group)
        totals = [a + b for a, b in zip(totals, vector.tolist(), strict=True)]
    return [total * s.factor for total, s in zip(totals, sums, strict=True)]


def _summed(sums: Sequence[Sequence[tuple[torch.Tensor | float, torch.device]]]) -> list[float]:
    """Return what each sum's terms add up to, with one wait for a device for all of them."""
    numbers: list[list[float]] = [[] for _ in sums]
    alike: dict[object, list[tuple[int, torch.Tensor]]] = {}
    for place, terms in enumerate(sums):
        for term, _ in terms:
            if isinstance(term, torch.Tensor):
                alike.setdefault((term.device, term.dtype), []).append((place, term))
            else:
                numbers[place].append(term)
    for tensors in alike.values():
        values = torch.stack([tensor for _, tensor in tensors]).cpu().tolist()
        for (place, _), value in zip(tensors, values, strict=True):
            numbers[place].append(value)
    return [added_up(own) for own in numbers]


def added_up(numbers: Sequence[float]) -> float:
    """Return the sum, rounded once; what it is where there are infinities among them.

    >>> added_up([0.1] * 10), added_up([float("inf"), -float("inf")])
    (1.0, nan)
    """
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):
        return sum(numbers)


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return ``tensor`` in float64, or in float32 on a device that has no wider type (MPS)."""
    return tensor.to(_widest(tensor.device))


@lru_cache
def _widest(device: torch.device) -> torch.dtype:
    if device.type in ("cpu", "cuda", "meta"):
        return torch.float64
    try:  # some refuse to make them, others to work with them
        torch.ones(2, dtype=torch.float64, device=device).sum().item()
    except (RuntimeError, TypeError):
        return torch.float32
    return torch.float64
