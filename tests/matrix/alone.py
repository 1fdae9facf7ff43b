"""Regimes of one process."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch

import regplug
from tests.matrix import tasks
from tests.matrix.tasks import (
    Outcome,
    Regime,
    Task,
    loop,
    outcome,
)

REGIMES: dict[str, Regime] = {}
regime = functools.partial(tasks.regime, REGIMES)


@regime("plain loop")
def plain(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec)


@regime("accumulation", Task(micro=(4, 4, 4, 4, 3), divisor=4))
def accumulation(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec)


@regime("clipping", Task(clip=0.05))
def clipping(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec)


@regime("Adam", Task("adam"))
def adam(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec)


@regime("fused Adam", Task("adam"))
def fused_adam(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, fused=True)


@regime("bf16 autocast", Task(exact=True))
def autocast(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, autocast=True)


@regime("compiled model")
def compiled(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, wrap=lambda model: torch.compile(model, backend="eager"))


@regime("closure")
def closure(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    model = task.model()
    optimizer = task.optimizer_of(model.parameters())
    metrics = []
    with regplug.attach(model, optimizer, [spec]) as session:
        for ((x, y),) in task.steps():

            def again(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
                optimizer.zero_grad()
                loss = session.loss(task.criterion(model(x), y))
                loss.backward()
                return loss

            optimizer.step(again)
            metrics.append(session.metrics())
        return outcome(model, metrics)


@regime("weights by hand", Task("plain"))
def by_hand(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    model = task.model()
    metrics = []
    with regplug.attach(model, plugins=[spec]) as session:
        for ((x, y),) in task.steps():
            session.loss(task.criterion(model(x), y)).backward()
            with session.step(lr=0.1), torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(0.1 * parameter.grad)
            model.zero_grad()
            metrics.append(session.metrics())
        return outcome(model, metrics)


def scaled(task: Task, spec: Any, **options: Any) -> Outcome:
    """Under a GradScaler, with steps in between that overflow and must leave no trace."""
    model = task.model()
    optimizer = task.optimizer_of(model.parameters(), **options)
    scaler = torch.amp.GradScaler(task.device, init_scale=2.0**10, growth_interval=2)
    metrics = []
    with regplug.attach(model, optimizer, [spec]) as session:
        for number, ((x, y),) in enumerate(task.steps()):
            for spoilt in (False, True) if number in (0, 3) else (False,):
                optimizer.zero_grad()
                loss = session.loss(task.criterion(model(x), y))
                scaler.scale(loss * float("inf") if spoilt else loss).backward()
                scaler.step(optimizer)
                scaler.update()
            metrics.append(session.metrics())
        assert session.steps == len(task.micro)
        return outcome(model, metrics)


@regime("GradScaler")
def grad_scaler(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return scaled(task, spec)


@regime("GradScaler, fused", Task("adam"))
def grad_scaler_fused(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return scaled(task, spec, fused=True)


@regime("resumed", Task("adam"))
def resumed(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    """After two steps everything is made anew from a file."""
    steps, metrics, saved = task.steps(), [], None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.pt"
        for part in (steps[:2], steps[2:]):
            model = task.model()
            optimizer = task.optimizer_of(model.parameters())
            with regplug.attach(model, optimizer, [copy.deepcopy(spec)]) as session:
                if saved is not None:
                    state = torch.load(file, weights_only=True)
                    model.load_state_dict(state["model"])
                    optimizer.load_state_dict(state["optimizer"])
                    session.load_state_dict(state["session"])
                for ((x, y),) in part:
                    optimizer.zero_grad()
                    session.loss(task.criterion(model(x), y)).backward()
                    optimizer.step()
                    metrics.append(session.metrics())
                saved = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "session": session.state_dict(),
                }
                torch.save(saved, file)
        return outcome(model, metrics)
