"""Pipeline stages: each rank attaches its part of the model, with an optimizer of its own."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

import regplug
from tests.helpers.pair import Pair

SPECS = [
    "l1(0.1)",
    "l2(0.2, where='all')",
    "weight_decay(0.3)",
    "group_lasso(0.1, delivery='step')",
]
STEPS, MICRO = 3, 4


def parts() -> list[nn.Module]:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    second = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1))
    return [first.double(), second.double()]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    return x, x.sum(1, keepdim=True)


def stage(rank: int) -> tuple[list[list[float]], dict[str, float], int]:
    """One stage: its weights, what is shown of them, and its steps."""
    own = parts()[rank]
    optimizer = torch.optim.SGD(own.parameters(), lr=0.05, momentum=0.5)
    x, y = data()
    schedule = ScheduleGPipe(
        PipelineStage(own, rank, 2, torch.device("cpu")), MICRO, loss_fn=nn.MSELoss()
    )
    with regplug.attach(own, optimizer, SPECS) as session:
        for _ in range(STEPS):
            optimizer.zero_grad()
            if rank == 0:
                schedule.step(x)
            else:
                schedule.step(target=y)
            optimizer.step()
        found = session.metrics()
        return [p.flatten().tolist() for p in own.parameters()], found, session.steps


def test_each_stage_is_regularized_as_in_one_process(pair: Pair) -> None:
    first, second = own = parts()
    optimizers = [torch.optim.SGD(p.parameters(), lr=0.05, momentum=0.5) for p in own]
    sessions = [
        regplug.attach(part, optimizer, SPECS, name=f"stage{i}")
        for i, (part, optimizer) in enumerate(zip(own, optimizers, strict=True))
    ]
    x, y = data()
    for _ in range(STEPS):
        nn.functional.mse_loss(second(first(x)), y).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for part, session, found in zip(own, sessions, pair.run(stage), strict=True):
        weights, metrics, steps = found
        assert steps == STEPS
        for p, mine in zip(part.parameters(), weights, strict=True):
            torch.testing.assert_close(
                torch.tensor(mine, dtype=torch.float64), p.detach().flatten()
            )
        for key, value in session.figures().items():
            assert abs(metrics[key] - value) < 1e-10
        session.detach()
