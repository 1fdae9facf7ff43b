"""Device meshes of the ranks."""

from typing import Any

import torch.distributed as dist

_meshes: dict[Any, Any] = {}


def mesh_of(*shape: int) -> Any:
    """Return a mesh on the CPU; made once, as its process groups stay.

    Its last dimension shards, and one before it replicates.
    """
    return _made(shape, ("replicate", "shard")[-len(shape) :])


def data_and_model(data: int, model: int) -> Any:
    """Return a mesh whose dimensions are named ``"dp"`` and ``"tp"``."""
    return _made((data, model), ("dp", "tp"))


def _made(shape: tuple[int, ...], names: tuple[str, ...]) -> Any:
    key = (shape, names)
    if key not in _meshes:
        _meshes[key] = dist.init_device_mesh("cpu", shape, mesh_dim_names=names)
    return _meshes[key]
