"""Accelerate, whose state is one for the whole process."""

import warnings
from typing import Any


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
