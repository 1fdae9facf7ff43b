"""Parametrized weights of which ranks have parts: what is shown is of the weights in use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations

import regplug
from tests.helpers.meshes import mesh_of
from tests.helpers.pair import Pair

SPECS = ["l1(0.3, where='*.weight')", "max_norm(0.5)", "target_sparsity(0.5, where='2.*')"]


def make() -> nn.Module:
    torch.manual_seed(0)
    first = parametrizations.weight_norm(nn.Linear(6, 5))
    last = parametrizations.spectral_norm(nn.Linear(5, 3))
    return nn.Sequential(first, nn.Tanh(), last).double()


def train(rank: int, spec: str, how: str) -> tuple[dict[str, Any], list[dict[str, float]], str]:
    """Return the weights, what is shown after each step, and what is told."""
    model, ranks = make(), 1
    if how:
        ranks = 2
        for layer in model if how == "each layer" else []:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh_of(2))
        fully_shard(model, mesh=mesh_of(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    shown = []
    with regplug.attach(model, optimizer, [spec]) as session:
        for _ in range(3):
            x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
            session.loss(model(x[rank::ranks]).square().mean()).backward()
            model.eval()
            with torch.no_grad():
                model(x)  # leaves the root gathered, as it is before the step
            model.train()
            optimizer.step()
            optimizer.zero_grad()
            shown.append(session.metrics())
        told = session.describe()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    found = {n: w.full_tensor() if hasattr(w, "full_tensor") else w for n, w in weights.items()}
    return {name: w.tolist() for name, w in found.items()}, shown, told


@pytest.mark.parametrize("how", ["each layer", "at once"])
@pytest.mark.parametrize("spec", SPECS)
def test_figures_are_of_the_weights_in_use(pair: Pair, spec: str, how: str) -> None:
    weights, shown, told = train(0, spec, "")
    assert "metrics are of the weights in use" in told
    for found in pair.run(train, spec, how):
        assert "metrics are of the weights in use" in found[2]
        for name, value in weights.items():
            torch.testing.assert_close(torch.tensor(found[0][name]), torch.tensor(value))
        for ours, theirs in zip(found[1], shown, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-10)
