"""Regimes of ranks: replicas, and shards."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from tests.helpers.meshes import mesh_of
from tests.matrix import tasks
from tests.matrix.tasks import (
    DEVICE,
    RANKS,
    Outcome,
    Regime,
    Task,
    loop,
)

REGIMES: dict[str, Regime] = {}
regime = functools.partial(tasks.regime, REGIMES)


def ddp_sync(model: nn.Module, last: bool) -> Any:
    return contextlib.nullcontext() if last else model.no_sync()


@regime("DDP", of_ranks=True)
def ddp(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, wrap=nn.parallel.DistributedDataParallel, rank=rank, ranks=ranks)


@regime("DDP, no_sync", Task(micro=(4, 4, 4, 4, 3), divisor=4), of_ranks=True)
def ddp_no_sync(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(
        task,
        spec,
        wrap=nn.parallel.DistributedDataParallel,
        rank=rank,
        ranks=ranks,
        sync=ddp_sync,
    )


@regime("DDP, static graph", Task("adam", clip=0.05), of_ranks=True)
def ddp_static(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(
        task,
        spec,
        wrap=lambda model: nn.parallel.DistributedDataParallel(model, static_graph=True),
        rank=rank,
        ranks=ranks,
    )


@regime("DDP, ZeroRedundancyOptimizer", of_ranks=True)
def zero(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    """Each rank updates a part of the weights, and sends it to the others."""

    def optimizer_of(parameters: Any) -> torch.optim.Optimizer:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return ZeroRedundancyOptimizer(parameters, torch.optim.SGD, lr=0.05, momentum=0.9)

    return loop(
        task,
        spec,
        wrap=nn.parallel.DistributedDataParallel,
        rank=rank,
        ranks=ranks,
        optimizer_of=optimizer_of,
    )


def sharder(*shape: int, **options: Any) -> Callable[[nn.Module], nn.Module]:
    from torch.distributed.fsdp import fully_shard

    def shard(model: nn.Module) -> nn.Module:
        mesh = mesh_of(*(shape or (RANKS,)), device=DEVICE)
        fully_shard(model.first, mesh=mesh, **options)
        fully_shard(model, mesh=mesh, **options)
        return model

    return shard


@contextlib.contextmanager
def fsdp_sync(model: Any, last: bool) -> Iterator[None]:
    model.set_requires_gradient_sync(last)
    yield


@regime("FSDP2", of_ranks=True)
def fsdp2(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, wrap=sharder(), rank=rank, ranks=ranks)


@regime("FSDP2, Adam, clipping", Task("adam", clip=0.05), of_ranks=True)
def fsdp2_adam(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, wrap=sharder(), rank=rank, ranks=ranks)


@regime("FSDP2, accumulation", Task(micro=(4, 4, 4, 4, 3), divisor=4), of_ranks=True)
def fsdp2_accumulation(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, wrap=sharder(), rank=rank, ranks=ranks, sync=fsdp_sync)


@regime("FSDP2, bf16 policy", Task(exact=True), of_ranks=True)
def fsdp2_mixed(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return loop(task, spec, wrap=sharder(mp_policy=policy), rank=rank, ranks=ranks)


@regime("HSDP, replicated", of_ranks=True)
def hsdp(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, wrap=sharder(RANKS, 1), rank=rank, ranks=ranks)
