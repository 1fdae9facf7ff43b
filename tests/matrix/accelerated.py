"""Regimes in the hands of Accelerate."""

from __future__ import annotations

import functools
from typing import Any

import torch

import regplug
from tests.helpers.accelerating import forget_accelerate, mesh_with, shard_with
from tests.matrix import tasks
from tests.matrix.meshed import along_the_sequence
from tests.matrix.tasks import (
    BATCH,
    DEVICE,
    Outcome,
    Regime,
    Task,
    outcome,
)

REGIMES: dict[str, Regime] = {}
regime = functools.partial(tasks.regime, REGIMES)


def accelerated(
    task: Task, spec: Any, rank: int, ranks: int, *, fsdp: bool = False, parallel: int = 1
) -> Outcome:
    """Accelerate's own loop: it counts micro-batches, divides, clips and skips."""
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    accelerator = Accelerator(cpu=DEVICE == "cpu", gradient_accumulation_steps=task.divisor)
    model: Any = task.model()
    if parallel > 1:
        mesh = mesh_with(accelerator, tp_size=parallel, dp_shard_size=ranks // parallel)
        along_the_sequence(model, mesh["tp"])
        model.tp_size = parallel  # as transformers says that it did so
    elif fsdp:
        shard_with(accelerator)
    optimizer = task.optimizer_of(model.parameters())
    micro = [batch for step in task.steps() for batch in step]
    xs = torch.cat([x for x, _ in micro])
    ys = torch.cat([y for _, y in micro])
    loader = DataLoader(
        torch.utils.data.TensorDataset(xs, ys),
        batch_size=BATCH * parallel // accelerator.num_processes,
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    metrics = []
    with regplug.attach(model, optimizer, [spec], accelerator=accelerator) as session:
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(session.loss(task.criterion(model(x), y)))
                if task.clip is not None and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), task.clip)
                optimizer.step()
                optimizer.zero_grad()
                if accelerator.sync_gradients:
                    metrics.append(session.metrics())
        assert session.steps == len(task.micro)
        return outcome(session.model, metrics)


RAGGED = Task(micro=(4, 4, 4, 4, 3), divisor=4, clip=0.05)


@regime("Accelerate, one process", RAGGED)
def accelerate_one(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    try:
        return accelerated(task, spec, rank, ranks)
    finally:
        forget_accelerate()


@regime("Accelerate, DDP", RAGGED, of_ranks=True)
def accelerate_ddp(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return accelerated(task, spec, rank, ranks)


@regime("Accelerate, FSDP2", RAGGED, of_ranks=True)
def accelerate_fsdp2(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return accelerated(task, spec, rank, ranks, fsdp=True)


@regime("Accelerate, FSDP2 × TP", RAGGED, ranks=4)
def accelerate_fsdp2_tp(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return accelerated(task, spec, rank, ranks, fsdp=True, parallel=2)
