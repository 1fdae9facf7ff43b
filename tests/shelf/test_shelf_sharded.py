"""The shelf under FSDP2 and DDP: the weights of one process, on even, uneven and empty shards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import regplug
from tests.helpers.pair import Pair

SPECS = [
    "group_lasso(0.05)",
    "group_lasso(0.05, groups='columns', delivery='loss')",
    "group_lasso(0.05, delivery='proximal')",
    "group_lasso(0.05, groups='columns', delivery='proximal')",
    "orthogonal(0.1)",
    "orthogonal(0.1, groups='columns', delivery='loss')",
    "spectral_norm(0.05)",
    "l2_sp(0.3)",
    "l2_sp(0.3, delivery='loss')",
    "l2_sp(0.3, delivery='proximal')",
    "weight_decay(0.5, cautious=True)",
    "max_norm(0.4)",
    "max_norm(0.4, groups='columns')",
    "unit_norm()",
    "non_negative()",
    "l1_ball(0.8)",
    "hard_threshold(0.5)",
    "gradient_noise(0.1)",
    "activity(0.05, where=['1', '3'])",
]

_mesh: list[Any] = []


def make() -> nn.Module:
    """Even rows (4), uneven ones (5), and one alone (1), which leaves the other rank nothing."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)
    ).double()


def train(
    rank: int, specs: list[str], how: str, optimizer: str
) -> list[tuple[list[torch.Tensor], dict[str, float], dict[str, Any]]]:
    """Return for each spec the weights, the metrics and the session's state after some steps."""
    results = []
    for spec in specs:
        model = make()
        called = model
        if how == "fsdp2":
            if not _mesh:
                _mesh.append(dist.init_device_mesh("cpu", (2,)))
            for layer in (model[0], model[2], model[4]):
                fully_shard(layer, mesh=_mesh[0])
            fully_shard(model, mesh=_mesh[0])
        elif how == "ddp":
            called = nn.parallel.DistributedDataParallel(model)
        trained = getattr(torch.optim, optimizer)(model.parameters(), lr=0.05)
        data = torch.Generator().manual_seed(1)
        with regplug.attach(called, trained, [spec]) as session:
            for _ in range(3):
                x = torch.randn(8, 6, generator=data, dtype=torch.float64)
                if how != "alone":
                    x = x.chunk(2)[rank]
                trained.zero_grad()
                loss = called(x).square().mean()
                if "loss" in spec or "activity" in spec:
                    loss = session.loss(loss)
                loss.backward()
                trained.step()
            metrics, state = session.metrics(), session.state_dict()
        weights = [p.detach() for p in model.parameters()]
        weights = [w.full_tensor() if hasattr(w, "full_tensor") else w for w in weights]
        results.append((weights, metrics, state))
    return results


STEPS_OF_THEIR_OWN = [s for s in SPECS if "proximal" in s or "cautious" in s]
# What draws at random, or takes from the batch; the others see replicas as one process.
OF_THE_RANK = [s for s in SPECS if s.startswith(("gradient_noise", "activity", "l2_sp(0.3)"))]


@pytest.mark.parametrize(
    ("how", "optimizer", "specs"),
    [
        ("fsdp2", "SGD", SPECS),
        ("fsdp2", "Adam", STEPS_OF_THEIR_OWN),
        ("ddp", "SGD", OF_THE_RANK),
    ],
)
def test_the_shelf_gives_the_weights_of_one_process(
    pair: Pair, how: str, optimizer: str, specs: list[str]
) -> None:
    alone = train(0, specs, "alone", optimizer)
    ranks = pair.run(train, specs, how, optimizer)
    plain = train(0, ["l1(0.0)"], "alone", optimizer)[0][0]
    for spec, expected, *found in zip(specs, alone, *ranks, strict=True):
        weights, metrics, _ = expected
        # Whatever the plugin did, it was not nothing.
        assert not all(map(torch.equal, weights, plain)), spec
        for own, told, _ in found:
            for w, wanted in zip(own, weights, strict=True):
                torch.testing.assert_close(
                    w, wanted, rtol=1e-9, atol=1e-11, msg=lambda m, s=spec: f"{s}: {m}"
                )
            assert told == pytest.approx(metrics, rel=1e-9), spec
        assert found[0][1] == found[1][1], spec


def test_anchors_of_shards_load_in_one_process(pair: Pair) -> None:
    (_, _, state), *_ = pair.run(train, ["l2_sp(0.3)"], "fsdp2", "SGD")[0]
    start = make()
    model = make()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    with regplug.attach(model, plugins=["l2_sp(0.3)"]) as session:
        session.load_state_dict(state)
        pulled = session.metrics()["l2_sp/value"]
    covered = [p for p in start.parameters() if p.ndim > 1]
    assert pulled == pytest.approx(0.3 * sum(p.numel() for p in covered))
