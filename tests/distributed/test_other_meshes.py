"""What plugins remember follows weights to other meshes: before training, and in a resumed run."""

from __future__ import annotations

import io
from typing import Any

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
from tests.helpers.pair import Pair

PLUGINS = [
    "l2_sp(linear(0.1, 0.5, steps=4), where='all')",
    "gradient_noise(0.1)",
    "l1(linear(0, 0.2, steps=4), delivery='proximal')",
]


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


# --- attached before the last mesh -------------------------------------------------------------


def attach_early(rank: int, parallel: bool) -> Any:
    """Attach to a tensor-parallel model that FSDP2 shards afterwards, as Accelerate does."""
    model = make()
    if parallel:
        parallelized(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, PLUGINS) as session:
        if parallel:
            sharded(model, data_and_model(2, 2)["dp"])
            optimizer.param_groups[0]["params"] = list(model.parameters())
        take(model, optimizer, session, range(3), rank // 2, 2 if parallel else 1)
        figures = session.metrics()
    return {n: w.tolist() for n, w in weights_of(model).items()}, figures


def test_anchors_follow_a_tensor_parallel_model_that_is_sharded_afterwards(four: Pair) -> None:
    wanted = attach_early(0, False)
    for found in four.run(attach_early, True):
        same(found, wanted)


# --- resumed on another mesh -------------------------------------------------------------------


def on_mesh(rank: int, how: str, steps: range, saved: bytes | None) -> Any:
    """Train some steps on a mesh, from what was saved on whatever mesh; and save."""
    model = make()
    state: Any = None if saved is None else torch.load(io.BytesIO(saved), weights_only=True)
    if state is not None:
        model.load_state_dict(state["model"])
    if how == "2×2":
        parallelized(model)
        sharded(model, data_and_model(2, 2)["dp"])
    elif how == "4":
        sharded(model, mesh_of(4))
    parts = {"2×2": 2, "4": 4, "1": 1}[how]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, PLUGINS) as session:
        if state is not None:
            session.load_state_dict(state["session"])
        take(model, optimizer, session, steps, rank * parts // 4 if how != "1" else 0, parts)
        figures, remembered = session.metrics(), session.state_dict()
    weights = weights_of(model)
    file = io.BytesIO()
    torch.save({"model": weights, "session": remembered}, file)
    return ({n: w.tolist() for n, w in weights.items()}, figures), file.getvalue()


@pytest.mark.parametrize(
    ("first", "then"), [("2×2", "4"), ("4", "2×2"), ("2×2", "1"), ("1", "2×2")]
)
def test_a_run_goes_on_on_another_mesh(four: Pair, first: str, then: str) -> None:
    wanted, _ = on_mesh(0, "1", range(4), None)

    def run(how: str, steps: range, saved: bytes | None) -> list[Any]:
        if how == "1":
            return [on_mesh(0, how, steps, saved)]
        return four.run(on_mesh, how, steps, saved)

    saved = run(first, range(2), None)[0][1]
    for found, _ in run(then, range(2, 4), saved):
        same(found, wanted)
