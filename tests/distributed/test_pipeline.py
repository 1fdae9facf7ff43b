"""Pipeline stages: each rank attaches its part of the model, with an optimizer of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import pipelining
from torch.distributed.pipelining import PipelineStage

import regplug
from tests.helpers.pair import Pair

SPECS = [
    "l1(0.1)",
    "l2(0.2, where='all')",
    "weight_decay(0.3)",
    "group_lasso(0.1, delivery='step')",
    "gradient_noise(0.01)",
]
STEPS, MICRO = 3, 4
SCHEDULES = {"ScheduleGPipe": 1, "Schedule1F1B": 1, "ScheduleInterleaved1F1B": 2}
"""How many stages each of two ranks has."""


def stages(count: int) -> nn.ModuleDict:
    """A model of so many stages, by their numbers."""
    torch.manual_seed(0)
    kinds: list[Any] = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(count)]
    return nn.ModuleDict({str(i): kind.double() for i, kind in enumerate(kinds)})


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    return x, x.flip(1)


def of_rank(rank: int, name: str) -> Any:
    """Its stages: their weights, what is shown of them, its steps, and what it is told."""
    count = SCHEDULES[name]
    own = nn.ModuleDict({i: p for i, p in stages(2 * count).items() if int(i) % 2 == rank})
    optimizer = torch.optim.SGD(own.parameters(), lr=0.05, momentum=0.5)
    x, y = data()
    device = torch.device("cpu")
    made = [PipelineStage(part, int(i), 2 * count, device) for i, part in own.items()]
    schedule = getattr(pipelining, name)(
        made if count > 1 else made[0], MICRO, loss_fn=nn.MSELoss()
    )
    with regplug.attach(own, optimizer, SPECS) as session:
        for _ in range(STEPS):
            optimizer.zero_grad()
            if rank == 0:
                schedule.step(x)
            else:
                schedule.step(target=y)
            optimizer.step()
        weights = {name: p.tolist() for name, p in own.named_parameters()}
        return weights, session.metrics(), session.steps, session.describe()


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_stage_is_regularized_as_in_one_process(pair: Pair, name: str) -> None:
    whole = stages(2 * SCHEDULES[name])
    ranks = [nn.ModuleDict({i: p for i, p in whole.items() if int(i) % 2 == r}) for r in (0, 1)]
    optimizers = [torch.optim.SGD(p.parameters(), lr=0.05, momentum=0.5) for p in ranks]
    sessions = [
        regplug.attach(part, optimizer, SPECS, name=f"rank{i}")
        for i, (part, optimizer) in enumerate(zip(ranks, optimizers, strict=True))
    ]
    x, y = data()
    for _ in range(STEPS):
        nn.functional.mse_loss(nn.Sequential(*whole.values())(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    all_found = pair.run(of_rank, name)
    for part, session, found in zip(ranks, sessions, all_found, strict=True):
        weights, metrics, steps, told = found
        assert steps == STEPS
        for key, p in part.named_parameters():
            mine = torch.tensor(weights[key], dtype=torch.float64)
            torch.testing.assert_close(mine, p.detach())
        for key, value in session.figures().items():
            assert abs(metrics[key] - value) < 1e-10
        numbers = " and ".join(part)
        assert f"of a pipeline of {len(whole)} stages this is {numbers}: figures" in told
        assert "of a pipeline" not in session.describe()
        session.detach()
