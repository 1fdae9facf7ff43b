"""Every name of DeepSpeed's that is used, and what of it regplug can't be right with, by name.

DeepSpeed has public functions for master weights, ``deepspeed.utils.safe_get_full_fp32_param`` and
its kin, each a collective for one whole parameter. The tables behind them tell which run of
elements a rank has, which needs none. Where a version has them not, :class:`UnsupportedError` says
so.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from regplug.errors import UnsupportedError

__all__ = ["Slice", "Zero", "check_inner", "is_deepspeeds", "is_engine", "link", "read", "zero_of"]

# Where the names are; a test that renames one sees what is done without it.
_MAPPING, _ADDRESS = "_hp_mapping", "lp_fragment_address"
_WRAPPER = "DeepSpeedOptimizerWrapper"
_ENGINE, _PIPELINE = "DeepSpeedEngine", "PipelineEngine"
_STAGES_1_2, _STAGE_3 = "DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3"
_BF16 = "BF16_Optimizer"

_WAY = "use ZeRO stage 1, 2 or 3 without it, or DDP or FSDP2"

# What a ZeRO optimizer says of itself, and why regplug does not act there.
_SETTINGS = {
    "cpu_offload": "offloads the optimizer to the CPU: its weights are elsewhere between steps",
    "offload_optimizer": "offloads the optimizer: its weights are elsewhere between steps",
    "offload_param": "offloads parameters: they are elsewhere between steps",
    "swap_optimizer": "swaps the optimizer to NVMe: its weights are in files between steps",
    "zenflow": "updates weights at several times (ZenFlow), with no step that all are in",
    "torch_autocast_gradscaler": "lets a GradScaler of its own step, with gradients still scaled",
}
# By a part of the optimizer's name, in small letters.
_OPTIMIZERS = {
    "onebit": "sends compressed momenta around, made of gradients that differ from rank to rank",
    "zeroone": "sends compressed momenta around, made of gradients that differ from rank to rank",
    "muon": "steps along gradients that were whitened before, to which none can be added",
}


def is_deepspeeds(thing: object) -> bool:
    """Whether ``thing`` is DeepSpeed's, or Accelerate's wrapper of such an optimizer."""
    package = type(thing).__module__.partition(".")[0]
    return package == "deepspeed" or type(thing).__name__ == _WRAPPER


def is_engine(model: object) -> bool:
    """Whether ``model`` is an engine, of any kind."""
    return any(cls.__name__ == _ENGINE and _is_own(cls) for cls in type(model).__mro__)


def _is_own(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "deepspeed"


def zero_of(model: nn.Module, optimizer: object) -> Any:
    """Return the engine's optimizer that ``optimizer`` means: a ZeRO one, or torch's for stage 0.

    Args:
        model: the engine, or the module in it.
        optimizer: what ``deepspeed.initialize`` or ``accelerator.prepare`` returned, or the torch
            optimizer that an engine was given.

    Raises:
        UnsupportedError: the engine keeps weights where regplug can't act, by name.
    """
    if type(optimizer).__name__ == _WRAPPER:
        optimizer = getattr(optimizer, "optimizer", None)
    if not is_engine(model):
        return optimizer
    if any(cls.__name__ == _PIPELINE for cls in type(model).__mro__):
        raise UnsupportedError(
            "DeepSpeed's PipelineEngine has a part of the model on each rank, and ties weights "
            "across them: metrics would be of a part; use DDP or FSDP2"
        )
    own = getattr(model, "optimizer", None)
    if optimizer is None or own is None:
        raise UnsupportedError(
            "DeepSpeed's engine steps by itself and keeps gradients out of .grad: attach with its "
            "optimizer, attach(engine, engine.optimizer, …), or use DDP or FSDP2"
        )
    known = (own, getattr(own, "optimizer", None), getattr(model, "basic_optimizer", None))
    if not any(optimizer is one for one in known):
        raise UnsupportedError(
            f"this {type(optimizer).__name__} is not the one that DeepSpeed's engine steps with: "
            "attach(engine, engine.optimizer, …)"
        )
    return own


@dataclass(frozen=True, eq=False)
class Slice:
    """What one rank has of one parameter.

    Attributes:
        parameter: the model's.
        shape: the shape of the whole.
        row: which of the flat tensors it is in.
        offset: where it begins there.
        start: where it begins in the flattened parameter.
        count: how many elements there are, none perhaps.
        group: the process group over whose ranks the parameter is spread.
    """

    parameter: nn.Parameter
    shape: tuple[int, ...]
    row: int
    offset: int
    start: int
    count: int
    group: Any


@dataclass(frozen=True, eq=False)
class Zero:
    """What a ZeRO optimizer has on this rank.

    Attributes:
        inner: the torch optimizer that updates the flat tensors.
        flat: those tensors, of weights in full precision.
        groups: the index of the parameter group of each.
        slices: the parameters.
        copies: what the model computes with of each flat tensor, which the engine copies it to
            after its update: None where it does so for all at once.
    """

    inner: Optimizer
    flat: list[torch.Tensor]
    groups: list[int]
    slices: list[Slice]
    copies: list[torch.Tensor] | None


def read(zero: Any) -> Zero:
    """Return what ``zero`` has on this rank.

    Raises:
        UnsupportedError: it is of a kind, or has a setting, that regplug can't be right with; or
            this version of DeepSpeed does not say where its weights are.
    """
    kind = type(zero).__name__
    if not _is_own(type(zero)) or kind not in (_STAGES_1_2, _STAGE_3, _BF16):
        raise UnsupportedError(
            f"DeepSpeed's {kind} keeps gradients out of .grad, where a penalty could be added, and "
            "does not say where: use ZeRO stage 1, 2 or 3 (in fp16 and bf16 too), DDP or FSDP2"
        )
    _check(zero)
    if kind == _STAGE_3:
        return _read_stage_3(zero)
    bf16 = kind == _BF16
    flat = _need(zero, "fp32_groups_flat_partition" if bf16 else "single_partition_of_fp32_groups")
    groups = _need(zero, "bf16_groups" if bf16 else "bit16_groups")
    processes = _need(zero, "real_dp_process_group")
    slices = [
        _slice(parameter, row, processes[row])
        for row, parameters in enumerate(groups)
        for parameter in parameters
    ]
    copies = None
    if not bf16:
        parts = _need(zero, "parallel_partitioned_bit16_groups")
        ranks = [torch.distributed.get_rank(group) for group in processes]
        copies = [part[rank] for part, rank in zip(parts, ranks, strict=True)]
    return Zero(_inner(zero), list(flat), list(range(len(flat))), slices, copies)


def _slice(parameter: nn.Parameter, row: int, group: Any) -> Slice:
    if not hasattr(parameter, _MAPPING):
        raise _unknown(f"parameter.{_MAPPING}")
    found = getattr(parameter, _MAPPING)
    if found is None:
        return Slice(parameter, tuple(parameter.shape), row, 0, 0, 0, group)
    there, here = found.get_hp_fragment_address(), _need(found, _ADDRESS)
    return Slice(parameter, tuple(parameter.shape), row, there.start, here.start, here.numel, group)


def _read_stage_3(zero: Any) -> Zero:
    flat = _need(zero, "fp32_partitioned_groups_flat")
    positions, number = _need(zero, "grad_position"), _need(zero, "get_param_id")
    copies = _need(zero, "fp16_partitioned_groups_flat")
    slices = []
    for parameters in _need(zero, "fp16_groups"):
        for parameter in parameters:
            row, offset, count = positions[number(parameter)]
            whole, group = _need(parameter, "ds_numel"), _need(parameter, "ds_process_group")
            # The last ranks have less than their share, or nothing, and the rest is padding.
            start = min(torch.distributed.get_rank(group) * count, whole)
            shape = tuple(_need(parameter, "ds_shape"))
            own = min(count, whole - start)
            slices.append(Slice(parameter, shape, row, offset, start, own, group))
    groups = [_need(zero, "sub_group_to_group_id")[row] for row in range(len(flat))]
    return Zero(_inner(zero), list(flat), groups, slices, list(copies))


def link(parameter: nn.Parameter, flat: torch.Tensor, state: Any) -> None:
    """Have ``safe_get_full_optimizer_state`` find the state of a tensor that was updated later."""
    found = getattr(parameter, _MAPPING, None)
    if found is not None:
        found.set_optim_state_fragment(flat, state)


def _inner(zero: Any) -> Optimizer:
    inner = getattr(zero, "optimizer", None)
    if not isinstance(inner, Optimizer):
        raise UnsupportedError(
            f"DeepSpeed's {type(zero).__name__} holds {type(inner).__name__}, which is no "
            f"torch.optim.Optimizer, for its update: {_WAY}"
        )
    check_inner(inner)
    return inner


def check_inner(inner: Optimizer) -> None:
    """Refuse an optimizer that makes something else of gradients before its step.

    Raises:
        UnsupportedError: it does, by name.
    """
    for part, why in _OPTIMIZERS.items():
        if part in type(inner).__name__.lower():
            raise UnsupportedError(
                f"DeepSpeed's {type(inner).__name__} {why}: use torch.optim.AdamW "
                '("torch_adam": true), or another optimizer of torch'
            )


def _check(zero: Any) -> None:
    for name, why in _SETTINGS.items():
        if getattr(zero, name, None):
            raise UnsupportedError(f"DeepSpeed's {type(zero).__name__} {why}; {_WAY}")
    for why in _groupings(zero):
        raise UnsupportedError(f"DeepSpeed's {type(zero).__name__} {why}; {_WAY}")


def _groupings(zero: Any) -> Iterator[str]:
    experts: Iterable[bool] = getattr(zero, "is_moe_param_group", ())
    if any(experts):
        yield "has groups of experts, which are on some of the ranks only"
    if getattr(zero, "model_parallel_group", None) is not None:
        yield "has a part of each layer on each rank (model parallelism)"
    if getattr(zero, "zero_hpz_partition_size", 1) > 1:
        yield "keeps a second partition of the weights within a node (hpZ)"


def _need(thing: Any, name: str) -> Any:
    found = getattr(thing, name, None)
    if found is None:
        raise _unknown(f"{type(thing).__name__}.{name}")
    return found


def _unknown(name: str) -> UnsupportedError:
    version = getattr(sys.modules.get("deepspeed"), "__version__", "of an unknown version")
    return UnsupportedError(
        f"DeepSpeed {version} has no {name}, by which regplug knows where ZeRO keeps "
        "the weights that it trains: use a version from 0.16 to 0.19, or DDP or FSDP2"
    )
