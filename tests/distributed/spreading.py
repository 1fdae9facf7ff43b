"""A net that is spread over meshes, trained for some steps, and compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import regplug
from tests.helpers.meshes import data_and_model, mesh_of
from tests.helpers.penalties import Remembers

Keep: TypeAlias = "Callable[[regplug.Session, int, str], object]"

PARTS = {"2×2": 2, "4": 4, "1": 1}
"""Of each batch, by how the net is spread."""


def spread(model: nn.Module, how: str) -> None:
    """Spread a net of :func:`make` over 2×2 or 4 ranks, or leave it to one."""
    if how == "2×2":
        parallelized(model)
        sharded(model, data_and_model(2, 2)["dp"])
    elif how == "4":
        sharded(model, mesh_of(4))


def make() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1))
    return nn.Sequential(*layers).double()


def parallelized(model: nn.Module) -> None:
    plan = {"0": ColwiseParallel(use_local_output=False), "2": RowwiseParallel()}
    parallelize_module(model, data_and_model(2, 2)["tp"], plan)


def sharded(model: nn.Module, mesh: Any) -> None:
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def batch(step: int, rank: int, parts: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, generator=generator, dtype=torch.float64)[rank::parts]


def take(model: Any, optimizer: Any, session: Any, steps: range, rank: int, parts: int) -> None:
    for step in steps:
        optimizer.zero_grad()
        session.loss(model(batch(step, rank, parts)).square().mean()).backward()
        optimizer.step()


def remembered(rank: int, how: str, save: Keep | None, load: Keep | None) -> Any:
    """Return what a plugin keeps that has its part as a plain tensor, other on each rank.

    Either it is trained and then saved, or it is loaded; if that is refused, what was said.
    """
    model = make()
    spread(model, how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    plugin = Remembers()
    with regplug.attach(model, optimizer, [plugin]) as session:
        if load is not None:
            try:
                load(session, rank, how)
            except Exception as error:  # torch wraps it on several ranks
                return str(error)
        if save is not None:
            take(model, optimizer, session, range(2), rank * PARTS[how] // 4, PARTS[how])
            save(session, rank, how)
        return {name: part.tolist() for name, part in plugin._sums.items()}


def weights_of(model: nn.Module) -> dict[str, Any]:
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    found = {name: p.detach() for name, p in model.named_parameters()}
    return {n: (p.full_tensor() if hasattr(p, "full_tensor") else p) for n, p in found.items()}


def same(found: Any, wanted: Any) -> None:
    assert found[1] == pytest.approx(wanted[1], abs=1e-11)
    for name, value in wanted[0].items():
        torch.testing.assert_close(torch.tensor(found[0][name]), torch.tensor(value))
