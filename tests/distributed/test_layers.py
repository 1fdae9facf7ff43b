"""Layers with a layout of their own, and pruned ones, under FSDP2: as in one process."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import regplug
from tests.helpers.pair import Pair

SPECS = [
    "unit_norm",
    "max_norm(0.2, groups='columns')",
    "group_lasso(0.05, delivery='step')",
    "group_lasso(0.05, delivery='loss', groups='columns')",
    "group_lasso(0.3, delivery='proximal')",
    "orthogonal(0.3, delivery='step')",
    "spectral_norm(0.3, delivery='loss')",
]

_mesh = []


def train(rank, specs, how, optimizer):
    """Return for each spec the weights after three steps, and the metrics."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    results = []
    for spec in specs:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.ConvTranspose1d(4, 6, 2, groups=2), nn.Conv1d(6, 8, 2, groups=2), nn.Conv1d(8, 3, 1)
        ).double()
        prune.l1_unstructured(model[2], "weight", 0.5)
        if how == "fsdp2":
            if not _mesh:
                _mesh.append(init_device_mesh("cpu", (2,)))
            for layer in model:
                fully_shard(layer, mesh=_mesh[0])
            fully_shard(model, mesh=_mesh[0])
        trained = getattr(torch.optim, optimizer)(model.parameters(), lr=0.05)
        data = torch.Generator().manual_seed(1)
        with regplug.attach(model, trained, [spec]) as session:
            for _ in range(3):
                x = torch.randn(8, 4, 3, generator=data, dtype=torch.float64)
                trained.zero_grad()
                y = model[1](model[0](x if how == "alone" else x.chunk(2)[rank]))
                loss = y.square().mean()
                session.loss(loss).backward()
                trained.step()
            metrics = session.metrics()
        weights = [p.detach() for p in model.parameters()]
        weights = [w.full_tensor() if hasattr(w, "full_tensor") else w for w in weights]
        results.append((weights, metrics))
    return results


@pytest.mark.parametrize(
    ("optimizer", "specs"), [("SGD", SPECS), ("Adam", [s for s in SPECS if "proximal" in s])]
)
def test_layouts_and_what_is_in_use_are_those_of_the_whole(
    pair: Pair, optimizer: str, specs: list[str]
) -> None:
    alone = train(0, specs, "alone", optimizer)
    ranks = pair.run(train, specs, "fsdp2", optimizer)
    for spec, (weights, metrics), *found in zip(specs, alone, *ranks, strict=True):
        for own, told in found:
            for w, wanted in zip(own, weights, strict=True):
                torch.testing.assert_close(
                    w, wanted, rtol=1e-9, atol=1e-11, msg=lambda m, s=spec: f"{s}: {m}"
                )
            assert told == pytest.approx(metrics, rel=1e-9), spec
