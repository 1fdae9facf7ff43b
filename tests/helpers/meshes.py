"""Device meshes of the ranks."""

from typing import Any

import torch.distributed as dist

_meshes: dict[Any, Any] = {}


def mesh_of(*shape: int, device: str = "cpu") -> Any:
    """Return a mesh on a device; made once, as its process groups stay.

    Its last dimension shards, and one before it replicates.
    """
    return _made(shape, ("replicate", "shard")[-len(shape) :], device)


def data_and_model(data: int, model: int) -> Any:
    """Return a mesh on the CPU whose dimensions are named ``"dp"`` and ``"tp"``."""
    return _made((data, model), ("dp", "tp"))


def _made(shape: tuple[int, ...], names: tuple[str, ...], device: str = "cpu") -> Any:
    key = (shape, names, device)
    if key not in _meshes:
        _meshes[key] = dist.init_device_mesh(device, shape, mesh_dim_names=names)
    return _meshes[key]
