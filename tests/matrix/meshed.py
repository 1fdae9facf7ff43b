"""Regimes of two and four ranks on meshes: tensor and sequence parallelism, also beside FSDP2."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from tests.helpers.meshes import data_and_model, mesh_of
from tests.matrix import tasks
from tests.matrix.ranks import fsdp_sync, sharder
from tests.matrix.tasks import (
    Outcome,
    Regime,
    Task,
    loop,
)

REGIMES: dict[str, Regime] = {}
regime = functools.partial(tasks.regime, REGIMES)


def columns_and_rows(model: Any) -> nn.Module:
    """Shard the linear layers of a model over two ranks, and leave its norm to each."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    plan = {
        "first": ColwiseParallel(output_layouts=Replicate()),
        "second": RowwiseParallel(input_layouts=Replicate()),
        "gate": RowwiseParallel(input_layouts=Replicate()),
    }
    return parallelize_module(model, mesh_of(2), plan)


def along_the_sequence(model: Any, mesh: Any) -> nn.Module:
    """Shard all of a model, with rows of a batch for its sequence: every weight is a DTensor."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    plan = {
        "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate()),
        "first": ColwiseParallel(output_layouts=Shard(0)),
        "norm": SequenceParallel(sequence_dim=0),
        "second": RowwiseParallel(input_layouts=Shard(0)),
        "gate": RowwiseParallel(input_layouts=Replicate()),
    }
    return parallelize_module(model, mesh, {k: v for k, v in plan.items() if hasattr(model, k)})


@regime("tensor parallel", ranks=2)
def tensor_parallel(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    # torch's loops over lists take no list of plain and sharded tensors.
    return loop(task, spec, wrap=columns_and_rows, foreach=False)


@regime("sequence parallel", Task(words=True, everywhere=True), ranks=2)
def sequence_parallel(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, wrap=lambda model: along_the_sequence(model, mesh_of(2)))


@regime("HSDP 2×2", ranks=4)
def hsdp(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, wrap=sharder(2, 2), rank=rank, ranks=ranks)


def two_dimensional(model: nn.Module) -> nn.Module:
    """Shard by tensor parallelism, and what it leaves by FSDP2."""
    from torch.distributed.fsdp import fully_shard

    mesh = data_and_model(2, 2)
    along_the_sequence(model, mesh["tp"])
    fully_shard(model.first, mesh=mesh["dp"])  # type: ignore[arg-type]
    fully_shard(model, mesh=mesh["dp"])
    return model


@regime("FSDP2 × TP", Task(everywhere=True), ranks=4)
def fsdp_tp(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, wrap=two_dimensional, rank=rank // 2, ranks=2)


@regime(
    "FSDP2 × TP, Adam, clipping, accumulation",
    Task("adam", micro=(4, 4, 4, 4, 3), divisor=4, clip=0.05),
    ranks=4,
)
def fsdp_tp_adam(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, wrap=two_dimensional, rank=rank // 2, ranks=2, sync=fsdp_sync)
