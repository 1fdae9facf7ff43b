"""Accelerate, whose state is one for the whole process."""

import warnings
from typing import Any

_meshes: dict[Any, Any] = {}


def forget_accelerate() -> None:
    """Let the next Accelerator be one of its own."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def shard_with(accelerator: Any) -> None:
    """Have Accelerate use FSDP2 on CPU, which its own check does not allow."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    # From where each new AcceleratorState takes it anew.
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def mesh_with(accelerator: Any, **sizes: int) -> Any:
    """Have Accelerate use a ``ParallelismConfig`` of these sizes beside FSDP2, and return the mesh.

    As its ``__init__`` does, which on a CPU knows of no FSDP2 yet.
    """
    from accelerate.parallelism_config import ParallelismConfig
    from transformers.integrations import tensor_parallel

    # Accelerate imports it for weights that are no DTensor yet. Newer transformers have it not.
    if not hasattr(tensor_parallel, "ReplicateParallel"):
        tensor_parallel.ReplicateParallel = None

    shard_with(accelerator)
    config = ParallelismConfig(**sizes)
    key = tuple(sorted(sizes.items()))
    # Its process groups stay, and each of them wakes up two hundred times a second.
    if key not in _meshes:
        _meshes[key] = config.get_device_mesh("cpu")
    config.device_mesh = _meshes[key]
    accelerator.state.parallelism_config = config
    accelerator.state.device_mesh = config.device_mesh
    config._validate_accelerator(accelerator)
    return accelerator.torch_device_mesh
