"""Device meshes of the ranks."""

from typing import Any

import torch.distributed as dist

_meshes: dict[tuple[int, ...], Any] = {}


def mesh_of(*shape: int, device: str = "cpu") -> Any:
    """Return a mesh on a device; made once, as its process groups stay.

    Its last dimension shards, and one before it replicates.
    """
    if shape not in _meshes:
        names = ("replicate", "shard")[-len(shape) :]
        _meshes[shape] = dist.init_device_mesh(device, shape, mesh_dim_names=names)
    return _meshes[shape]
