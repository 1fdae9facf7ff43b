"""Two models in one process group, each on a mesh or engine of its own, each with its session."""

from __future__ import annotations

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
from torch.nn.parallel import DistributedDataParallel

import regplug
from tests.helpers.meshes import data_and_model, mesh_of
from tests.helpers.pair import Pair

GENERATOR = ["l1(linear(0, 0.3, steps=3))", "weight_decay(0.1)", "max_norm(0.6)"]
JUDGE = [
    "group_lasso(0.05, delivery='proximal')",
    "l2(0.2, delivery='loss')",
    "l2_sp(0.1, delivery='step')",
]
STEPS = 3


def make(seed: int, sizes: tuple[int, int, int]) -> nn.Sequential:
    torch.manual_seed(seed)
    first, second, last = sizes
    return nn.Sequential(nn.Linear(first, second), nn.Tanh(), nn.Linear(second, last)).double()


def spread(model: nn.Module, how: str) -> nn.Module:
    if how == "DDP":
        return DistributedDataParallel(model)
    if how == "FSDP2":
        fully_shard(model, mesh=mesh_of(4))
    if how == "FSDP2 × TP":
        mesh = data_and_model(2, 2)
        parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        fully_shard(model, mesh=mesh["dp"])
    return model


def whole(model: nn.Module) -> list[Any]:
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    found = [p.detach() for p in model.parameters()]
    return [(p.full_tensor() if hasattr(p, "full_tensor") else p).tolist() for p in found]


def gan(rank: int, how: tuple[str, str]) -> tuple[list[Any], list[Any]]:
    """Train two models against each other; return their weights and all that is shown."""
    generator, judge = make(0, (3, 7, 6)), make(1, (6, 8, 1))
    generator, judge = spread(generator, how[0]), spread(judge, how[1])
    # Ranks that share a part of either model have the same rows: means are those of two halves.
    part = slice(rank // 2, None, 2) if any(how) else slice(None)
    makes = torch.optim.Adam(generator.parameters(), lr=0.01, foreach=False)
    judges = torch.optim.SGD(judge.parameters(), lr=0.05, momentum=0.5, foreach=False)
    numbers = torch.Generator().manual_seed(1)
    shown: list[Any] = []
    with (
        regplug.attach(generator, makes, GENERATOR, name="generator") as made,
        regplug.attach(judge, judges, JUDGE, name="judge") as judged,
    ):
        for _ in range(STEPS):
            z, real = (
                torch.randn(8, n, generator=numbers, dtype=torch.float64)[part] for n in (3, 6)
            )
            marks = judge(torch.cat([real, generator(z).detach()]))
            data = marks.mul(torch.tensor([[1.0]] * len(z) + [[-1.0]] * len(z))).tanh().mean()
            loss = judged.loss(data)
            loss.backward()
            judges.step()
            judges.zero_grad()
            made.loss(judge(generator(z)).square().mean()).backward()
            makes.step()
            makes.zero_grad()
            judges.zero_grad()
            shown += [made.metrics(), judged.metrics(), {"loss": (loss - data).item()}]
        assert (made.steps, judged.steps) == (STEPS, STEPS)
    return [whole(generator), whole(judge)], shown


@pytest.mark.parametrize("how", [("DDP", "FSDP2 × TP"), ("FSDP2", "FSDP2 × TP"), ("DDP", "FSDP2")])
def test_two_models_have_the_weights_and_values_of_one_process(
    four: Pair, how: tuple[str, str]
) -> None:
    weights, shown = gan(0, ("", ""))
    assert "generator/l1/value" in shown[0]
    assert "judge/group_lasso/value" in shown[1]
    ranks = four.run(gan, how)
    for found, told in ranks:
        assert found == ranks[0][0]
        for ours, alone in zip(found, weights, strict=True):
            for p, q in zip(ours, alone, strict=True):
                torch.testing.assert_close(torch.tensor(p), torch.tensor(q), rtol=0, atol=1e-9)
        for mine, theirs in zip(told, shown, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-9)


def disagree(rank: int) -> list[str]:
    """Of two sessions the ranks agree on the first, and not on the second."""
    told = []
    for name, strength in (("generator", 0.1), ("judge", 0.1 + 0.1 * (rank == 3))):
        model = spread(make(0, (4, 4, 2)), "DDP" if name == "generator" else "FSDP2 × TP")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        try:
            regplug.attach(model, optimizer, [f"l1({strength})"], name=name).detach()
            told.append("agreed")
        except regplug.errors.RegplugError as error:
            told.append(str(error))
    return told


def test_each_session_is_compared_by_its_own_name(four: Pair) -> None:
    for first, second in four.run(disagree):
        assert first == "agreed"
        assert "session 'judge': the ranks differ" in second
        assert "0.2 on rank 3" in second
