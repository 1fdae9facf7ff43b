"""FSDP2 and its kin: exact on shards that are even, uneven or empty, replicated or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode

import regplug
from tests.helpers.meshes import mesh_of
from tests.helpers.pair import Pair
from tests.helpers.penalties import ColumnNorm, GroupNorm, SpectralNorm

SPECS = {
    "l1": "l1(0.3, delivery={!r})",
    "l2": "l2(0.3, delivery={!r})",
    "l2 of all": "l2(0.3, where='all', delivery={!r})",  # left to the optimizer at the step
    "elastic_net": "elastic_net(0.3, 0.2, delivery={!r})",
}
OWN = {"groups": GroupNorm, "columns": ColumnNorm, "spectral": SpectralNorm}


def make(seed: int = 0) -> nn.Module:
    """Even rows (4), uneven ones (5), and one alone (1), which leaves other ranks with nothing."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)
    ).double()


def plugin_of(kind: str, delivery: str) -> Any:
    return OWN[kind](0.3, delivery=delivery) if kind in OWN else SPECS[kind].format(delivery)


def train(
    rank: int, kind: str, delivery: str, shape: tuple[int, ...], ranks: int
) -> tuple[dict[str, Any], list[dict[str, float]], list[float]]:
    """Return the weights, the metrics after each step and the value of each loss event."""
    model = make()
    if shape:
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh_of(*shape))
        fully_shard(model, mesh=mesh_of(*shape))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    generator = torch.Generator().manual_seed(1)
    metrics, losses = [], []
    with regplug.attach(model, optimizer, [plugin_of(kind, delivery)]) as session:
        for _ in range(3):
            x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
            data = model(x[rank::ranks]).square().mean()
            loss = session.loss(data)
            losses.append((loss - data).item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            # FSDP2 leaves the root gathered after an evaluation: its parameters are others then.
            with torch.no_grad():
                model(x)
            metrics.append(session.metrics())
    weights = {}
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    for name, parameter in model.named_parameters():
        p = parameter.detach()
        weights[name] = (p.full_tensor() if shape else p).tolist()
    return weights, metrics, losses


def close(found: Any, wanted: Any) -> None:
    weights, metrics, losses = wanted
    for ours, theirs, added in found:
        for name, value in weights.items():
            pair = (torch.tensor(w, dtype=torch.float64) for w in (ours[name], value))
            torch.testing.assert_close(*pair, rtol=0, atol=1e-12)
        for one, other in zip(theirs, metrics, strict=True):
            assert one == pytest.approx(other, abs=1e-11)
        assert added == pytest.approx(losses, abs=1e-11)


@pytest.mark.parametrize("delivery", ["step", "loss", "proximal"])
@pytest.mark.parametrize("kind", [*SPECS, *OWN])
@pytest.mark.parametrize("shape", [(2,), (2, 1), (1, 2)], ids=str)
def test_shards_give_the_weights_values_and_metrics_of_one_process(
    pair: Pair, kind: str, delivery: str, shape: tuple[int, ...]
) -> None:
    """Mixed tensors, hangs on uneven shards, partial and double values."""
    if delivery == "proximal" and kind in ("groups", "spectral"):
        with pytest.raises(regplug.errors.SpecError, match="no proximal operator"):
            plugin_of(kind, delivery)
        return
    close(pair.run(train, kind, delivery, shape, 2), train(0, kind, delivery, (), 1))


def penalize_one_row(rank: int, sharded: bool) -> float:
    torch.manual_seed(0)
    model = nn.Linear(6, 1).double()
    if sharded:
        fully_shard(model, mesh=mesh_of(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with regplug.attach(model, optimizer, ["l1(0.3, delivery='loss')"]) as session:
        data = model(torch.ones(2, 6).double()).sum()
        loss = session.loss(data)
        loss.backward()
        return (loss - data).item()


def test_a_rank_with_nothing_at_all_takes_part_in_the_sum(pair: Pair) -> None:
    """One row over two ranks: the other would wait for ever."""
    assert pair.run(penalize_one_row, True) == pytest.approx([penalize_one_row(0, False)] * 2)


def attach_late(rank: int, sharded: bool) -> Any:
    """Attach after an evaluation, with the root's parameters gathered."""
    model = make()
    if sharded:
        fully_shard(model, mesh=mesh_of(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x = torch.ones(4, 6).double()
    with torch.no_grad():
        model(x)
    gathered = sharded and not any(hasattr(p, "full_tensor") for p in model.parameters())
    with regplug.attach(model, optimizer, ["l1(0.3)", "weight_decay(0.1)"]) as session:
        model(x).square().mean().backward()
        optimizer.step()
        return gathered, session.metrics()["l1/value"]


def test_a_model_left_gathered_by_an_evaluation_is_bound_to_its_shards(pair: Pair) -> None:
    """FSDP2 leaves the root's parameters gathered: plain ones, not those of the optimizer."""
    _, alone = attach_late(0, False)
    for gathered, value in pair.run(attach_late, True):
        assert gathered
        assert value == pytest.approx(alone, abs=1e-12)


def test_four_ranks_shard_and_replicate(four: Pair) -> None:
    """Sums over all ranks would count what is replicated twice."""
    for kind in ("l1", "columns"):
        close(four.run(train, kind, "loss", (2, 2), 4), train(0, kind, "loss", (), 1))


# --- tensor parallelism ------------------------------------------------------------------------


def train_parallel(rank: int, kind: str) -> Any:
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    model = make()
    if dist.is_initialized():
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(model, mesh_of(2), plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, foreach=False)
    with regplug.attach(model, optimizer, [plugin_of(kind, "step")]) as session:
        for seed in range(3):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed)).double()
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        metrics = session.metrics()
    weights = {}
    for name, parameter in model.named_parameters():
        p = parameter.detach()
        weights[name] = (p.full_tensor() if hasattr(p, "full_tensor") else p).tolist()
    return weights, [metrics], []


@pytest.mark.parametrize("kind", ["l1", "spectral"])
def test_tensor_parallel_layers_count_once(pair: Pair, kind: str) -> None:
    """Some parameters are sharded by rows, some by columns, the rest replicated."""
    close(pair.run(train_parallel, kind), train_parallel(0, kind))


# --- what it costs -----------------------------------------------------------------------------


def count(rank: int, kind: str | None, delivery: str, metrics: bool) -> int:
    """Return how many collectives one step makes."""
    model = make()
    fully_shard(model, mesh=mesh_of(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    plugins = [plugin_of(kind, delivery)] if kind else []
    if kind == "l1" and delivery == "step":
        plugins += ["l2(0.1, delivery='step')", "weight_decay(0.1)"]
    if kind == "l1" and delivery == "loss":
        plugins += ["l2(0.1, delivery='loss')"]
    with regplug.attach(model, optimizer, plugins) as session:
        for _ in range(2):  # the first step sets up what stays
            counter = CommDebugMode()
            with counter:
                session.loss(model(torch.ones(2, 6).double()).sum()).backward()
                optimizer.step()
                optimizer.zero_grad()
                if metrics:
                    session.metrics()
    return counter.get_total_counts()


def test_separable_penalties_communicate_for_values_alone(pair: Pair) -> None:
    """A step makes no collective but what FSDP2 makes itself; metrics make one for all together."""

    def more(kind: str, delivery: str, metrics: bool) -> int:
        bare, other = pair.run(count, None, "", False)
        found, same = pair.run(count, kind, delivery, metrics)
        assert bare == other > 0
        assert found == same
        return found - bare

    assert more("l1", "step", False) == 0
    assert more("l1", "proximal", False) == 0
    # The loss that the loop sees is right on every rank: one sum for both penalties.
    assert more("l1", "loss", False) == 1
    assert more("l1", "step", True) == 1
    assert more("columns", "step", False) == 3  # one gather for each covered parameter
    assert more("columns", "proximal", False) == 3
    assert more("columns", "loss", False) == 6  # for the value, and for the gradient
    assert more("columns", "step", True) == 3 + 3 + 1  # the last is for the share of zeros
