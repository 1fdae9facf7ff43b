"""What plugins remember follows weights to other meshes: before training, and in a resumed run."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

import regplug
from tests.distributed.spreading import make, parallelized, same, sharded, take, weights_of
from tests.helpers.meshes import data_and_model, mesh_of
from tests.helpers.pair import Pair

PLUGINS = [
    "l2_sp(linear(0.1, 0.5, steps=4), where='all')",
    "gradient_noise(0.1)",
    "l1(linear(0, 0.2, steps=4), delivery='proximal')",
]


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
