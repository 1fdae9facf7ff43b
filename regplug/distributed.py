"""Shards and ranks: what one rank holds of a parameter, and sums over all that the others hold.

A parameter is a plain tensor, alike on all ranks, or a ``DTensor`` (FSDP2, tensor parallelism) of
which each rank holds a part. Element-wise work is done on the parts alone, with no communication.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from regplug.backend.private import compiled_inside
from regplug.blocks import PLAIN
from regplug.errors import UnsupportedError

__all__ = ["Sum", "full", "is_sharded", "like", "local", "part", "resolve", "unwrap_model"]


def is_dtensor(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` is a ``DTensor``, told without importing that machinery."""
    return type(tensor) not in PLAIN and hasattr(tensor, "device_mesh")


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether each rank holds a part of ``tensor`` only."""
    return is_dtensor(tensor) and any(p.is_shard() for p in _placements(tensor))


def _placements(tensor: torch.Tensor) -> Sequence[Any]:
    return tensor.placements  # type: ignore[attr-defined,no-any-return]


def mesh_ranks(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the global ranks over which ``tensor`` is spread; nothing for a plain one."""
    if not is_dtensor(tensor):
        return ()
    return tuple(sorted(tensor.device_mesh.mesh.flatten().tolist()))  # type: ignore[attr-defined]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part as a plain tensor that shares its memory; no communication."""
    if not is_dtensor(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()  # type: ignore[attr-defined,no-any-return]


def full(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor on each rank: a collective for a ``DTensor``, nothing otherwise."""
    if not is_dtensor(tensor):
        return tensor
    with torch.no_grad():
        return tensor.full_tensor()  # type: ignore[attr-defined,no-any-return]


def part(whole: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of ``whole``, a tensor alike on all ranks, sharded as ``of`` is."""
    if not is_dtensor(of):
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    mesh = of.device_mesh  # type: ignore[attr-defined]
    replicated = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(placements=_placements(of)).to_local()


def like(part: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """Return ``part``, this rank's part of a tensor like ``of``, as a ``DTensor`` if ``of`` is."""
    if not is_dtensor(of):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        of.device_mesh,  # type: ignore[attr-defined]
        _placements(of),
        run_check=False,
        shape=of.shape,
        stride=of.stride(),
    )


class Sum:
    """A sum over weights, of which each rank has computed its own part.

    The session adds the parts up over the ranks, all sums of all plugins in one collective per
    process group, and over the sharded dimensions of the mesh only: what is replicated counts
    once.

    Args:
        terms: pairs of a parameter and a number or 0-d tensor, the sum over this rank's part of it.
        factor: what the total is multiplied by.

    >>> w = torch.nn.Parameter(torch.tensor([[1.0, 0.0]]))
    >>> resolve([Sum([(w, (w == 0).sum())], factor=0.5)])
    [0.5]
    """

    def __init__(
        self, terms: Iterable[tuple[torch.Tensor, torch.Tensor | float]], factor: float = 1.0
    ) -> None:
        self.factor = factor
        self.by_groups: dict[tuple[Any, ...], list[tuple[torch.Tensor | float, torch.device]]] = {}
        for parameter, term in terms:
            own = term.detach() if isinstance(term, torch.Tensor) else term
            self.by_groups.setdefault(_shard_groups(parameter), []).append((own, parameter.device))


def _shard_groups(parameter: torch.Tensor) -> tuple[Any, ...]:
    """Return the process groups over whose ranks the parts of ``parameter`` are spread."""
    if not is_dtensor(parameter):
        return ()
    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    return tuple(
        mesh.get_group(dim) for dim, p in enumerate(_placements(parameter)) if p.is_shard()
    )


def resolve(sums: Sequence[Sum]) -> list[float]:
    """Return the totals over all ranks, with one collective per process group for all together."""
    totals = [0.0] * len(sums)
    keys = list(dict.fromkeys(key for total in sums for key in total.by_groups))
    for groups in keys:
        own = [total.by_groups.get(groups, ()) for total in sums]
        # Added up in the host's memory: some devices have no float64.
        vector = torch.tensor([_summed(terms) for terms in own], dtype=torch.float64, device="cpu")
        if groups:
            device = next(device for terms in own for _, device in terms)
            vector = vector.to(device, _widest(device))
        for group in groups:
            dist.all_reduce(vector, group=group)
        totals = [a + b for a, b in zip(totals, vector.tolist(), strict=True)]
    return [total * s.factor for total, s in zip(totals, sums, strict=True)]


def _summed(terms: Sequence[tuple[torch.Tensor | float, torch.device]]) -> float:
    numbers = [term for term, _ in terms if not isinstance(term, torch.Tensor)]
    alike: dict[object, list[torch.Tensor]] = {}
    for term, _ in terms:
        if isinstance(term, torch.Tensor):
            alike.setdefault((term.device, term.dtype), []).append(term)
    # One wait for the device for all of them.
    parts = [torch.stack(tensors).cpu().double().sum().item() for tensors in alike.values()]
    return sum(parts, math.fsum(numbers))


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


def layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield ``model`` and what it wraps, from the outside in: DDP, compiled, the user's own."""
    while True:
        yield model
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif (inner := compiled_inside(model)) is not None:
            model = inner
        else:
            return


def finds_unused(model: nn.Module) -> bool:
    """Whether ``model`` is in a DDP that looks for parameters which took no part in forward."""
    return any(
        isinstance(layer, nn.parallel.DistributedDataParallel)
        and layer.find_unused_parameters
        and not layer.static_graph
        for layer in layers(model)
    )


def leaves(tensor: torch.Tensor) -> set[torch.Tensor]:
    """Return the leaves of the graph behind ``tensor`` that gradients will reach."""
    found, seen, stack = set(), set(), [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(leaf)
        stack += [following for following, _ in node.next_functions]
    return found


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the user's own module from inside DDP, ``torch.compile`` and their like.

    Raises:
        UnsupportedError: FSDP1, which flattens parameters, or DeepSpeed's engine.
    """
    for layer in layers(model):
        if type(layer).__module__.partition(".")[0] == "deepspeed":
            raise UnsupportedError(
                "DeepSpeed's engine keeps gradients out of .grad, where a penalty could be added; "
                "use DDP or FSDP2"
            )
    for module in layer.modules():
        if any(base.__name__ == "FullyShardedDataParallel" for base in type(module).__mro__):
            raise UnsupportedError(
                "FSDP1 (FullyShardedDataParallel) flattens parameters, so that neither their shape "
                "nor their values are there to act on: use FSDP2 (torch.distributed.fsdp."
                "fully_shard, or fsdp_version: 2 in Accelerate's configuration)"
            )
    return layer


def reshard(model: nn.Module) -> None:
    """Put the sharded parameters of FSDP2 modules back in place.

    FSDP2 leaves the root's parameters gathered after a forward; the ones that the module then
    shows are not the optimizer's.
    """
    for module in model.modules():
        if hasattr(module, "reshard") and hasattr(module, "unshard"):
            module.reshard()  # type: ignore[operator]
