"""Gradients that are placed otherwise than their weights, as sequence parallelism leaves them.

The weights of a norm are alike on all ranks there, and its gradients are summands; those of a
sharded embedding are whole.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import regplug
from tests.helpers.meshes import mesh_of
from tests.helpers.pair import Pair
from tests.helpers.penalties import ColumnNorm, GroupNorm

STEPS = 3


class Reader(nn.Module):
    """As torch's Llama: an embedding by rows, norms along the sequence, a head by columns."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.act = nn.Tanh()
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.norm(self.embed(x))))


def plan() -> dict[str, Any]:
    return {
        "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "act": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }


def reader(*, parallel: bool) -> nn.Module:
    torch.manual_seed(0)
    model = Reader().double()
    return parallelize_module(model, mesh_of(2), plan()) if parallel else model


OWN = {"groups": GroupNorm, "columns": ColumnNorm}

OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.05, centered=True),
}


def plugin_of(spec: Any) -> Any:
    if isinstance(spec, str):
        return spec
    kind, delivery = spec
    return OWN[kind](0.3, where=["*.weight", "!norm*"], delivery=delivery)


def train(rank: int, specs: list[Any], optimizer: str, parallel: bool) -> list[Any]:
    """Return for each spec the weights, the metrics and the loss event's values."""
    found: list[Any] = []
    for spec in map(plugin_of, specs):
        model = reader(parallel=parallel)
        updates = OPTIMIZERS[optimizer](model.parameters())
        generator = torch.Generator().manual_seed(1)
        metrics, losses = [], []
        with regplug.attach(model, updates, [spec]) as session:
            for _ in range(STEPS):
                x = torch.randint(0, 7, (2, 6), generator=generator)
                y = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
                loss = session.loss((model(x) - y).square().mean())
                losses.append(loss.item())
                loss.backward()
                updates.step()
                updates.zero_grad()
                metrics.append(session.metrics())
        weights = {}
        for name, parameter in model.named_parameters():
            p = parameter.detach()
            weights[name] = (p.full_tensor() if parallel else p).tolist()
        found.append((weights, metrics, losses))
    return found


def agree(specs: list[Any], wanted: list[Any], *found: list[Any]) -> None:
    for spec, expected, *ranks in zip(specs, wanted, *found, strict=True):
        assert ranks[0] == ranks[1], f"{spec}: the ranks report differently"
        weights, metrics, losses = ranks[0]
        for name, value in expected[0].items():
            pair = (torch.tensor(w, dtype=torch.float64) for w in (weights[name], value))
            torch.testing.assert_close(
                *pair, rtol=0, atol=1e-11, msg=lambda m, s=spec, n=name: f"{s}, {n}: {m}"
            )
        for one, other in zip(metrics, expected[1], strict=True):
            assert one == pytest.approx(other, abs=1e-11), spec
        assert losses == pytest.approx(expected[2], abs=1e-11), spec


def forms(name: str, arguments: str, *deliveries: str) -> list[str]:
    return [f"{name}({arguments}, where='all', delivery='{d}')" for d in deliveries]


ALL = [
    *forms("l1", "0.3", "step", "loss", "proximal"),
    *forms("l2", "0.3", "step", "loss", "proximal"),
    *forms("elastic_net", "0.2, 0.3", "step", "loss", "proximal"),
    *forms("l2_sp", "0.3", "step", "loss", "proximal"),
    "group_lasso(0.1, where=['*.weight', '!norm*'], delivery='step')",
    "orthogonal(0.1, where=['*.weight', '!norm*'], delivery='step')",
    "spectral_norm(0.1, where=['*.weight', '!norm*'], delivery='loss')",
    ("columns", "step"),
    ("groups", "step"),
    ("groups", "loss"),
    "gradient_noise(0.3)",
    "weight_decay(0.3, where='all')",
    "weight_decay(0.3, where='all', cautious=True)",
    "max_norm(0.4, where=['*.weight', '!norm*'])",
    "non_negative(where='all')",
    "hard_threshold(0.5, where=['*.weight', '!norm*'])",
    "activity(0.1, where=['act', 'head'])",
]
SEPARABLE = [s for s in ALL if str(s).startswith(("l1", "l2", "elastic"))]


@pytest.mark.parametrize(
    ("optimizer", "specs"),
    [("SGD", ALL), ("Adam", SEPARABLE), ("Adadelta", SEPARABLE), ("RMSprop", SEPARABLE)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_gradient_placed_otherwise_gives_the_weights_of_one_process(
    pair: Pair, optimizer: str, specs: list[Any]
) -> None:
    agree(specs, train(0, specs, optimizer, False), *pair.run(train, specs, optimizer, True))


# --- by hand -----------------------------------------------------------------------------------


def one_step(rank: int, spec: str, placement: str) -> list[float]:
    """Take a step of 0.1 from ones, with a data gradient of zeros that is placed so."""
    mesh = mesh_of(2)
    norms = nn.Sequential(nn.LayerNorm(4)).double()
    model = parallelize_module(norms, mesh, {"0": SequenceParallel()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    placed = {"sum": Partial(), "avg": Partial("avg"), "shard": Shard(0), "alike": Replicate()}
    with regplug.attach(model, optimizer, [spec]):
        for p in model.parameters():
            none = torch.zeros(2 if placement == "shard" else 4, dtype=torch.float64)
            p.grad = DTensor.from_local(none, mesh, [placed[placement]], run_check=False)
        optimizer.step()
    weight: Any = model[0].weight.detach()
    return list(weight.full_tensor().tolist())


@pytest.mark.parametrize("placement", ["sum", "avg", "shard", "alike"])
@pytest.mark.parametrize("spec", ["l1(1.0, where='all')", "l2(0.5, where='all')"])
def test_each_rank_adds_its_part_of_the_penalty(pair: Pair, spec: str, placement: str) -> None:
    """The gradient is 1 for both: 1 − 0.1."""
    for found in pair.run(one_step, spec, placement):
        assert found == pytest.approx([0.9] * 4)


def warm_up(rank: int) -> int:
    """Begin at a learning rate of 0, with a gradient that one rank alone knows of."""
    mesh = mesh_of(2)
    model = parallelize_module(nn.Sequential(nn.LayerNorm(4)), mesh, {"0": SequenceParallel()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with regplug.attach(model, optimizer, ["l2(0.5, where='all')"]) as session:
        for p in model.parameters():
            p.grad = DTensor.from_local(
                torch.full((4,), float(rank)), mesh, [Partial()], run_check=False
            )
        optimizer.step()
        return session.steps


def test_a_step_is_real_on_all_ranks_or_none(pair: Pair) -> None:
    assert pair.run(warm_up) == [1, 1]


def add_to_a_shared_loss(rank: int, whole: bool) -> tuple[float, float]:
    """Return the loss with the penalty, from one that is a ``DTensor`` itself, and what it is."""
    torch.manual_seed(0)
    model: Any = nn.Linear(3, 4).double()
    style = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    parallelize_module(model, mesh_of(2), style)
    loss = model(torch.ones(2, 3, dtype=torch.float64)).square().sum()
    wanted = loss.full_tensor().item() + 0.5 * model.weight.full_tensor().square().sum().item()
    if whole:
        loss = loss.redistribute(placements=[Replicate()])
    with regplug.attach(model, plugins=["l2(0.5, delivery='loss')"]) as session:
        return session.loss(loss).full_tensor().item(), wanted


@pytest.mark.parametrize("whole", [True, False])
def test_a_loss_that_ranks_share_gets_the_penalty_once(pair: Pair, whole: bool) -> None:
    for found, wanted in pair.run(add_to_a_shared_loss, whole):
        assert found == pytest.approx(wanted, abs=1e-12)


def attach_to_summands(rank: int) -> str:
    model = nn.Linear(4, 1, bias=False)
    summand = DTensor.from_local(torch.ones(1, 4), mesh_of(2), [Partial()], run_check=False)
    model.weight = nn.Parameter(summand)
    with pytest.raises(regplug.errors.UnsupportedError) as refusal:
        regplug.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ["l1(0.1)"])
    return str(refusal.value)


def test_a_weight_that_nobody_has_added_up_is_refused(pair: Pair) -> None:
    for told in pair.run(attach_to_summands):
        assert "weight is a sum of what each rank has" in told
        assert "redistribute it" in told


class OfAnother(regplug.Selective):
    """A stranger's plugin, which adds to gradients by what the package shows."""

    def __init__(self) -> None:
        self.where, self.name = "all", None

    @regplug.hookimpl
    def on_gradients(self, session: Any) -> None:
        for _, weights, gradients in session.updates(self._selection):
            for w, g in zip(weights, gradients, strict=True):
                regplug.local(g).add_(regplug.local(w))


class OfParameters(OfAnother):
    """One that asks the parameters themselves."""

    @regplug.hookimpl
    def on_gradients(self, session: Any) -> None:
        for p in session.model.parameters():
            regplug.local(p.grad).add_(regplug.part(regplug.full(p), p.grad))


def added_by_another(rank: int, which: int, parallel: bool) -> Any:
    model = reader(parallel=parallel)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [(OfAnother, OfParameters)[which]()]):
        model(torch.tensor([[0, 1, 2, 3, 4, 5]])).square().mean().backward()
        optimizer.step()
    weights = [p.detach() for p in model.parameters()]
    return [(p.full_tensor() if parallel else p).tolist() for p in weights]


@pytest.mark.parametrize("which", [0, 1], ids=["updates", "parameters"])
def test_plugins_of_others_find_gradients_placed_as_weights(pair: Pair, which: int) -> None:
    wanted = added_by_another(0, which, False)
    for found in pair.run(added_by_another, which, True):
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs))


def count(rank: int, spec: str | None) -> int:
    model = reader(parallel=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [spec] if spec else []):
        for _ in range(2):
            counter = CommDebugMode()
            with counter:
                model(torch.tensor([[0, 1, 2, 3, 4, 5]])).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
    return int(counter.get_total_counts())


def test_a_penalty_makes_no_collective_that_the_update_would_not(pair: Pair) -> None:
    """A sum is added up once, before the penalty instead of in the update."""
    bare, penalized = pair.run(count, None), pair.run(count, "l2(0.1, where='all')")
    assert bare[0] == bare[1] > 0
    assert penalized == bare
