"""A loss that is a ``DTensor``, as tensor parallelism leaves it, and whatever plugins add to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import regplug
from tests.helpers.meshes import mesh_of
from tests.helpers.pair import Pair
from tests.helpers.penalties import SpectralNorm


class Together(regplug.JointPenalty):
    """λ·‖W‖²·‖b‖²: of weights that belong together."""

    def groups(self, session: Any) -> Iterator[tuple[torch.Tensor, ...]]:
        yield session.model[0].weight, session.model[0].bias

    def value(self, *ws: torch.Tensor) -> torch.Tensor:
        weight, bias = ws
        return weight.square().sum() * bias.square().sum()


class Term(regplug.Plugin):
    """A stranger's term, computed of the weights as the model has them: a ``DTensor``."""

    @regplug.hookimpl
    def on_loss(self, session: Any) -> torch.Tensor:
        found: torch.Tensor = 0.3 * session.model[0].weight.square().sum()
        return found


PLUGINS: dict[str, Any] = {
    "separable": lambda: "l1(0.5, delivery='loss')",
    "whole": lambda: SpectralNorm(0.5, delivery="loss"),
    "together": lambda: Together(0.5, delivery="loss", where="all"),
    "activity": lambda: "activity(0.5, where='1')",
    "term": Term,
}


def one(rank: int, plugin: str, kind: str) -> tuple[float, list[Any]]:
    """Return the penalized loss, and its gradients."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
    if kind != "one process":
        style = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
        parallelize_module(model, mesh_of(2), {"0": style})

    def found() -> torch.Tensor:
        loss: Any = model(torch.ones(2, 3, dtype=torch.float64)).square().sum()
        if kind == "whole":
            loss = loss.redistribute(placements=[Replicate()])
        return loss.full_tensor() if kind == "plain" else loss  # type: ignore[no-any-return]

    with regplug.attach(model, plugins=[PLUGINS[plugin]()]) as session:
        total: Any = session.loss(found())
        total.backward()
    gradients = [p.grad for p in model.parameters()]
    shown = [total, *gradients]
    shown = [t.full_tensor() if hasattr(t, "full_tensor") else t for t in shown]
    return shown[0].item(), [g.tolist() for g in shown[1:]]


@pytest.mark.parametrize("kind", ["summands", "whole", "plain"])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_it_gets_every_term_once(pair: Pair, plugin: str, kind: str) -> None:
    loss, gradients = one(0, plugin, "one process")
    for theirs, found in pair.run(one, plugin, kind):
        assert theirs == pytest.approx(loss, abs=1e-12)
        for ours, wanted in zip(found, gradients, strict=True):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(wanted))
