"""FSDP2 beside tensor parallelism, and several meshes in one model: all that is shown is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import regplug
from regplug.report import measures
from tests.helpers.meshes import data_and_model, mesh_of
from tests.helpers.pair import Pair
from tests.helpers.penalties import ColumnNorm, GroupNorm, SpectralNorm

OWN = {"groups": GroupNorm, "columns": ColumnNorm, "spectral": SpectralNorm}
DATA, MODEL = 2, 2


def make() -> nn.Module:
    """Rows of 7, 3 and 1: uneven parts of uneven parts, and ranks that have nothing."""
    torch.manual_seed(0)
    layers = (nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1))
    return nn.Sequential(*layers).double()


def two_dimensional(model: nn.Module) -> list[nn.Parameter]:
    """Shard by columns and rows, and all of it again by FSDP2: strided shards."""
    mesh = data_and_model(DATA, MODEL)
    parallelize_module(
        model, mesh["tp"], {"0": ColwiseParallel(use_local_output=False), "2": RowwiseParallel()}
    )
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh["dp"])
    fully_shard(model, mesh=mesh["dp"])
    return []


def several(model: nn.Module) -> list[nn.Parameter]:
    """Have each layer on a mesh of its own, as experts are; one is left to the loop."""
    mesh = data_and_model(DATA, MODEL)
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(output_layouts=Replicate())})
    fully_shard(model[0], mesh=mesh["dp"])
    fully_shard(model[2], mesh=mesh_of(DATA * MODEL))
    return list(model[4].parameters())


def ignoring(model: nn.Module) -> list[nn.Parameter]:
    """Have FSDP2 leave a layer alone."""
    ignored = list(model[2].parameters())
    fully_shard(model[0], mesh=mesh_of(DATA, MODEL))
    fully_shard(model, mesh=mesh_of(DATA, MODEL), ignored_params=set(ignored))
    return ignored


HOW = {"two-dimensional": two_dimensional, "several": several, "ignoring": ignoring}


def plugin_of(spec: Any) -> Any:
    return spec if isinstance(spec, str) else OWN[spec[0]](0.3, delivery=spec[1])


def train(rank: int, specs: list[Any], optimizer: str, how: str | None) -> list[Any]:
    """Return for each spec the weights, and all that is shown after each step."""
    return [train_one(rank, plugin_of(spec), optimizer, how) for spec in specs]


def train_one(rank: int, spec: Any, optimizer: str, how: str | None) -> Any:
    model = make()
    by_hand = HOW[how](model) if how else []
    # Ranks that hold one model together have the same rows.
    part = slice(None) if how is None else slice(_data_rank(how, rank), None, _parts(how))
    updates = getattr(torch.optim, optimizer)(model.parameters(), lr=0.05, foreach=False)
    generator = torch.Generator().manual_seed(1)
    shown: list[dict[str, float]] = []
    x = torch.empty(0)
    values: list[float] = []

    def again() -> torch.Tensor:
        updates.zero_grad()
        data = model(x).square().mean()
        loss = session.loss(data)
        values[:] = [data.item(), loss.item()]
        loss.backward()
        for p in by_hand:
            dist.all_reduce(p.grad)
            p.grad /= DATA * MODEL  # type: ignore[operator]
        return loss

    with regplug.attach(model, updates, [spec]) as session:
        for _ in range(3):
            x = torch.randn(8, 6, generator=generator, dtype=torch.float64)[part]
            told = updates.step(again).item()
            found = {**session.metrics(), "loss": values[1] - values[0], "told": told - values[0]}
            for row in measures.layer_rows(session):
                found[f"{row.layer}, zeros"] = row.zeros
                found[f"{row.layer}, norm"] = row.norm
            covered = measures.covered(session)
            found["extent"] = measures.extent(covered)
            counts = measures.histogram(session, covered, 1.0).counts
            shown.append({**found, **{f"bin {i}": n for i, n in enumerate(counts) if n}})
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    weights = {}
    for name, parameter in model.named_parameters():
        p = parameter.detach()
        weights[name] = (p.full_tensor() if hasattr(p, "full_tensor") else p).tolist()
    return weights, shown


def _data_rank(how: str, rank: int) -> int:
    return rank if how == "ignoring" else rank // MODEL


def _parts(how: str) -> int:
    return DATA * MODEL if how == "ignoring" else DATA


SPECS: list[Any] = [
    *(f"l1(0.3, delivery='{d}')" for d in ("step", "loss", "proximal")),
    "elastic_net(0.2, 0.3, where='all')",
    "l2_sp(0.3, delivery='loss')",
    *((kind, "step") for kind in OWN),
    *((kind, "loss") for kind in OWN),
    ("columns", "proximal"),
    "group_lasso(0.05, delivery='proximal')",
    "orthogonal(0.1)",
    "spectral_norm(0.1)",
    "gradient_noise(0.1)",
    "weight_decay(0.3)",
    "max_norm(0.4)",
    "unit_norm()",
    "l1_ball(0.8)",
    "hard_threshold(0.5)",
]
ADAPTIVE = [s for s in SPECS if "l1(" in str(s) or "group_lasso" in str(s)]


@pytest.mark.parametrize(
    ("how", "optimizer", "specs"),
    [
        ("two-dimensional", "SGD", SPECS),
        ("two-dimensional", "Adam", ADAPTIVE),
        ("several", "SGD", SPECS),
        ("ignoring", "SGD", SPECS[:7]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_shown_value_is_that_of_one_process_on_every_rank(
    four: Pair, how: str, optimizer: str, specs: list[Any]
) -> None:
    """Sums went over half of the mesh, so that values were off, and differed between ranks."""
    wanted = train(0, specs, optimizer, None)
    ranks = four.run(train, specs, optimizer, how, timeout=240)
    for place, spec in enumerate(specs):
        weights, shown = wanted[place]
        found = [of_rank[place] for of_rank in ranks]
        for name, value in weights.items():
            pair = (torch.tensor(w, dtype=torch.float64) for w in (found[0][0][name], value))
            torch.testing.assert_close(
                *pair, rtol=0, atol=1e-11, msg=lambda m, s=spec, n=name: f"{s}, {n}: {m}"
            )
        for told, expected in zip(found[0][1], shown, strict=True):
            assert told == pytest.approx(expected, abs=1e-11), spec
        for other in found[1:]:
            assert other[0] == found[0][0], f"{spec}: the ranks drift apart"
            for ours, theirs in zip(other[1], found[0][1], strict=True):
                assert ours == pytest.approx(theirs, rel=1e-12), f"{spec}: ranks report differently"


def attach_another(rank: int, different: int | None) -> str:
    model = make()
    two_dimensional(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    strength = 0.2 if rank == different else 0.1
    try:
        regplug.attach(model, optimizer, [f"l1({strength})"]).detach()
    except regplug.errors.RegplugError as error:
        return str(error)
    return "agreed"


def test_all_ranks_of_a_mesh_compare_what_they_attach(four: Pair) -> None:
    assert four.run(attach_another, None) == ["agreed"] * 4
    for told in four.run(attach_another, 3):
        assert "the ranks differ" in told
        assert "0.2 on rank 3" in told
