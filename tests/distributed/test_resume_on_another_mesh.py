"""What Accelerate's checkpoints hold of plugins goes on on another mesh, or is refused there."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import regplug
from regplug.integrations.checkpoint import stateful
from regplug.session import accelerate
from tests.distributed.spreading import PARTS, make, remembered, same, spread, take, weights_of
from tests.helpers.meshes import mesh_of
from tests.helpers.pair import Pair

PLUGINS = [
    "l2_sp(0.1, where='all')",
    "decay_to_start(linear(0.1, 0.5, steps=4))",
    "cpr(init='dependent', kappa=0.9, where='0.*')",
    "target_sparsity(0.5, where='2.*')",
]
RANKS = {"2×2": 4, "4": 4, "1": 1}


def run(rank: int, how: str, steps: range, folder: str, load: bool, save: bool) -> Any:
    """Train some steps on a mesh, from what was saved on whatever mesh; and save."""
    model = make()
    if load:
        model.load_state_dict(torch.load(f"{folder}/weights.pt"))
    spread(model, how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, foreach=False)
    with regplug.attach(model, optimizer, PLUGINS) as session:
        if load:
            read(folder, session, rank, how)
            assert session.steps == steps.start
        take(model, optimizer, session, steps, rank * PARTS[how] // 4, PARTS[how])
        if save:
            write(folder, session, rank, how)
        figures = session.metrics()
    weights = weights_of(model)
    if save and rank == 0:
        torch.save(weights, f"{folder}/weights.pt")
    return {n: w.tolist() for n, w in weights.items()}, figures


@pytest.mark.parametrize(("first", "then"), [("2×2", "4"), ("2×2", "1"), ("1", "2×2")])
def test_a_run_goes_on_on_another_mesh(four: Pair, tmp_path: Path, first: str, then: str) -> None:
    wanted = run(0, "1", range(4), "", False, False)

    def on(how: str, steps: range, load: bool, save: bool) -> list[Any]:
        arguments = (how, steps, str(tmp_path), load, save)
        return [run(0, *arguments)] if how == "1" else four.run(run, *arguments)

    on(first, range(2), False, True)
    for found in on(then, range(2, 4), True, False):
        same(found, wanted)


def write(folder: str, session: Any, rank: int, how: str) -> None:
    accelerate.write(folder, session, rank, RANKS[how])


def read(folder: str, session: Any, rank: int, how: str) -> None:
    accelerate.read(folder, session, rank, RANKS[how], "cpu")


def test_a_part_does_not_come_back_to_a_rank_that_has_another(four: Pair, tmp_path: Path) -> None:
    """As many ranks as before, of another mesh: the parts have the same shapes there."""
    save, load = partial(write, str(tmp_path)), partial(read, str(tmp_path))
    saved = four.run(remembered, "2×2", save, None)
    assert four.run(remembered, "2×2", None, load) == saved
    for told in four.run(remembered, "4", None, load):
        assert "sharded otherwise over 4 ranks" in told


def evaluated(rank: int) -> tuple[bool, list[int]]:
    """Sharded as a whole, and looked at: FSDP2 leaves the weights gathered, as plain ones."""
    model = make()
    fully_shard(model, mesh=mesh_of(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, foreach=False)
    with regplug.attach(model, optimizer, ["l2_sp(0.1)"]) as session:
        assert accelerate.is_sharded(session)
        with torch.no_grad():
            model(torch.ones(2, 6, dtype=torch.float64))
        assert not any(isinstance(p, DTensor) for p in model.parameters())
        sizes = [t.numel() for t in stateful(session).state_dict()["tensors"].values()]
        return accelerate.is_sharded(session), sizes


def test_a_model_that_was_just_evaluated_is_sharded(four: Pair) -> None:
    """The main process alone would write, and wait for the others' parts without end."""
    for sharded, sizes in four.run(evaluated):
        assert sharded
        assert sizes == [p.numel() for p in make().parameters() if p.ndim > 1]
