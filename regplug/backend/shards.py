"""Shards and ranks: what one rank holds of a parameter, and sums over all that the others hold.

A parameter is a plain tensor, alike on all ranks, or a ``DTensor`` (FSDP2, tensor parallelism) of
which each rank holds a part. Element-wise work is done on the parts alone, with no communication.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from regplug.backend.blocks import PLAIN
from regplug.backend.fragments import Fragment

__all__ = [
    "arrangement",
    "beside",
    "full",
    "is_sharded",
    "is_spread",
    "like",
    "local",
    "part",
    "whole_loss",
]


_plain = frozenset(PLAIN)


def is_dtensor(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` is a ``DTensor``, told without importing that machinery."""
    return type(tensor) not in PLAIN and hasattr(tensor, "device_mesh")


def is_spread(tensor: torch.Tensor) -> bool:
    """Whether there is more to ``tensor`` than what is in its memory on this rank."""
    return type(tensor) is Fragment or is_dtensor(tensor)


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether each rank holds a part of ``tensor`` only."""
    return type(tensor) is Fragment or bool(spread_over(tensor))


def spread_over(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the dimensions of its mesh along which ranks hold different parts of ``tensor``.

    All that is not alike is spread: FSDP2 beside tensor parallelism has placements that are no
    ``Shard``.
    """
    if not is_dtensor(tensor):
        return ()
    return tuple(dim for dim, p in enumerate(placements(tensor)) if not p.is_replicate())


def is_unsummed(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` is what ranks have together: a sum, say, that is yet to be added up."""
    return is_dtensor(tensor) and any(p.is_partial() for p in placements(tensor))


def place_gradients(weights: Sequence[torch.Tensor]) -> None:
    """Have each weight's gradient placed as the weight is, so that their parts belong together.

    Sequence parallelism leaves summands, of which each rank has one, for weights that are alike on
    all ranks; they are added up, which the update would do otherwise. Where a weight is sharded
    and its gradient is whole, each rank takes its part. What is placed alike is left as it is.
    """
    for w in weights:
        g: Any = w.grad
        if g is not None and is_dtensor(g):
            # The same object, mostly.
            own, wanted = g.placements, placements(w)
            if own is not wanted and own != wanted:
                with torch.no_grad():
                    w.grad = g.redistribute(placements=wanted)


def placements(tensor: torch.Tensor) -> Sequence[Any]:
    return tensor.placements  # type: ignore[attr-defined,no-any-return]


def mesh_ranks(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return the global ranks over which ``tensor`` is spread; nothing for a plain one."""
    if not is_dtensor(tensor):
        return ()
    return tuple(sorted(tensor.device_mesh.mesh.flatten().tolist()))  # type: ignore[attr-defined]


def arrangement(tensors: Sequence[torch.Tensor]) -> str:
    """Return what tells this rank's parts of tensors from those that it would have otherwise.

    On another mesh of as many ranks they may have the same shapes. Nothing for what is whole.
    """
    told: list[Any] = []
    for tensor in tensors:
        if type(tensor) is Fragment:
            told.append((tensor.start, tensor.part.numel()))
        elif is_dtensor(tensor):
            mesh = tensor.device_mesh  # type: ignore[attr-defined]
            place = mesh.get_coordinate()
            told.append((tuple(mesh.shape), place, *map(repr, placements(tensor))))
    return hashlib.blake2b(repr(told).encode(), digest_size=8).hexdigest() if told else ""


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part as a plain tensor that shares its memory; no communication.

    Args:
        tensor: a weight or gradient; a plain one is its own part.

    Returns:
        What this rank holds; under uneven sharding it may have no elements.

    >>> w = torch.nn.Parameter(torch.ones(2, 3))
    >>> local(w) is w
    True
    """
    if type(tensor) is Fragment:
        return tensor.part
    if type(tensor) in PLAIN or not is_dtensor(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()  # type: ignore[attr-defined,no-any-return]


def locals_of(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return this rank's part of each of ``tensors``; see :func:`local`."""
    if _plain.issuperset(map(type, tensors)):
        return list(tensors)
    return [local(tensor) for tensor in tensors]


def full(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor on each rank: a collective for a ``DTensor``, nothing otherwise.

    Args:
        tensor: a weight, gradient or state; all ranks must ask for the same.

    Returns:
        A plain tensor of the whole shape; ``tensor`` itself if it is plain.

    >>> w = torch.ones(2, 3)
    >>> full(w) is w
    True
    """
    if type(tensor) is Fragment:
        return tensor.gathered()
    if not is_dtensor(tensor):
        return tensor
    with torch.no_grad():
        return tensor.full_tensor()  # type: ignore[attr-defined,no-any-return]


def whole_loss(loss: torch.Tensor) -> torch.Tensor:
    """Return a loss that ranks share, alike on all of them; any other as it is.

    What is added to a summand is added as often as there are ranks, or not at all: torch (2.13)
    takes its plan for a number where a ``DTensor`` is added later.
    """
    if not is_unsummed(loss):
        return loss
    from torch.distributed.tensor import Replicate

    whole = [Replicate() if p.is_partial() else p for p in placements(loss)]
    return loss.redistribute(placements=whole)  # type: ignore[attr-defined,no-any-return]


def beside(term: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
    """Return a 0-d term as it can be added to ``loss``, which ranks may share; differentiable."""
    if is_dtensor(term):
        term = term.full_tensor()  # type: ignore[attr-defined]
    term = term.to(loss.device, loss.dtype)
    if not is_dtensor(loss):
        return term
    from torch.distributed.tensor import DTensor, Replicate

    mesh = loss.device_mesh  # type: ignore[attr-defined]
    return DTensor.from_local(term, mesh, [Replicate()] * mesh.ndim, run_check=False)


def part(whole: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of ``whole``, a tensor alike on all ranks, sharded as ``of`` is.

    Args:
        whole: a plain tensor of the shape of ``of``.
        of: the weight whose placement counts.

    Returns:
        What :func:`local` of such a weight is; ``whole`` itself where ``of`` is plain.

    >>> w = torch.nn.Parameter(torch.ones(2, 3))
    >>> part(torch.zeros(2, 3), of=w).shape
    torch.Size([2, 3])
    """
    if type(of) is Fragment:
        return of.cut(whole)
    if not is_dtensor(of):
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    mesh = of.device_mesh  # type: ignore[attr-defined]
    replicated = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(placements=placements(of)).to_local()


def like(part: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """Return ``part``, this rank's part of a tensor like ``of``, as a ``DTensor`` if ``of`` is.

    What a plugin keeps so is saved whole, and loads on another mesh.

    Args:
        part: of the shape of :func:`local` of ``of``.
        of: the weight whose placement and shape it gets.

    Returns:
        A ``DTensor`` that shares memory with ``part``; ``part`` itself where ``of`` is plain.

    >>> w = torch.nn.Parameter(torch.ones(2, 3))
    >>> like(local(w).detach().clone(), of=w).shape
    torch.Size([2, 3])
    """
    if type(of) is Fragment:
        return of.like(part)
    if not is_dtensor(of):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part,
        of.device_mesh,  # type: ignore[attr-defined]
        placements(of),
        run_check=False,
        shape=of.shape,
        stride=of.stride(),
    )
