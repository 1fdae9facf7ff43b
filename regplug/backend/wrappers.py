"""What stands around a model: DDP, compilation, FSDP2; and the user's own module inside."""

import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from regplug.backend.living import living
from regplug.backend.private import compiled_inside, leaf_of
from regplug.backend.shards import is_dtensor
from regplug.errors import UnsupportedError

__all__ = ["finds_unused", "layers", "leaves", "reshard", "stages_of", "unwrap_model"]


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


def graph(tensor: torch.Tensor) -> Iterator[Any]:
    """Yield the nodes of the graph behind ``tensor``, each once."""
    visited, stack = set(), [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        yield node
        stack += [following for following, _ in node.next_functions]


def leaves(tensor: torch.Tensor) -> set[torch.Tensor]:
    """Return the leaves of the graph behind ``tensor`` that gradients will reach."""
    found = map(leaf_of, graph(tensor))
    return {leaf for leaf in found if leaf is not None}


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the user's own module from inside DDP, ``torch.compile`` and their like.

    Raises:
        UnsupportedError: FSDP1, which flattens parameters, DDP that takes tensor-parallel weights
            apart, or DeepSpeed's engine.
    """
    for layer in layers(model):
        if hasattr(layer, "device_mesh") and any(map(_is_piece, layer.parameters())):
            raise UnsupportedError(
                f"{type(layer).__name__}(…, device_mesh=…) around tensor parallelism keeps each "
                "rank's pieces of the weights as plain parameters, which say nothing of the whole: "
                "use FSDP2 (torch.distributed.fsdp.fully_shard) on that dimension of the mesh"
            )
        if type(layer).__module__.partition(".")[0] == "deepspeed":
            raise UnsupportedError(
                "DeepSpeed's engine keeps gradients out of .grad, where a penalty could be added; "
                "use DDP or FSDP2"
            )
    for module in layer.modules():
        if any(base.__name__ == "FullyShardedDataParallel" for base in type(module).__mro__):
            raise UnsupportedError(
                "FSDP1 (FullyShardedDataParallel) flattens parameters, so that neither their shape "
                "nor their values are there to act on; with use_orig_params=True each rank has a "
                "flat piece that may end within a row, or nothing: use FSDP2 "
                "(torch.distributed.fsdp.fully_shard, or fsdp_version: 2 in Accelerate's "
                "configuration)"
            )
    return layer


def _is_piece(parameter: nn.Parameter) -> bool:
    """Whether a plain parameter carries with it how a ``DTensor`` was placed."""
    return not is_dtensor(parameter) and any(
        hasattr(kept, "placements") for kept in vars(parameter).values()
    )


def reshard(model: nn.Module) -> None:
    """Put the sharded parameters of FSDP2 modules back in place.

    FSDP2 leaves the root's parameters gathered after a forward; the ones that the module then
    shows are not the optimizer's.
    """
    for module in model.modules():
        if hasattr(module, "reshard") and hasattr(module, "unshard"):
            module.reshard()  # type: ignore[operator]


def stages_of(model: nn.Module) -> tuple[list[int], int] | None:
    """Return which stages of a pipeline ``model`` is or holds, and of how many; None if none.

    A module knows nothing of its stage, so these are looked for among the living objects.
    """
    if _PIPELINING not in sys.modules or not dist.is_initialized():
        return None
    inside = {id(module) for module in model.modules()}
    found = [s for s in living(_is_stage) if id(getattr(s, "submod", None)) in inside]
    numbers = sorted({int(stage.stage_index) for stage in found})
    return (numbers, int(found[0].num_stages)) if found else None


_PIPELINING = "torch.distributed.pipelining"


def _is_stage(kind: type) -> bool:
    """Whether it is one of torch's classes of stages, made by hand or by tracing."""
    return str(kind.__module__).startswith(_PIPELINING) and kind.__name__.endswith("Stage")
