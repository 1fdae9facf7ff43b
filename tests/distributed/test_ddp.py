"""DDP beyond the matrix: unused parameters, a failing rank, replicas that stay alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import regplug
from tests.helpers.pair import Pair


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used = nn.Linear(3, 2, bias=False)
        self.spare = nn.Linear(3, 2, bias=False)

    def forward(self, x: torch.Tensor, both: bool = False) -> torch.Tensor:
        return self.used(x) + self.spare(x) if both else self.used(x)


def unused(rank: int, spec: str) -> Any:
    model = DistributedDataParallel(Branches(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [spec]) as session:
        for _ in range(3):
            try:
                session.loss(model(torch.ones(2, 3)).sum()).backward()
            except (regplug.errors.UnsupportedError, RuntimeError) as error:
                return f"{type(error).__name__}: {error}"
            optimizer.step()
            optimizer.zero_grad()
    return {name: p.tolist() for name, p in model.module.named_parameters()}


def test_step_delivery_leaves_unused_parameters_alone(pair: Pair) -> None:
    """In the loss, DDP would "mark a variable ready only once"."""
    before = Branches()
    one, other = pair.run(unused, "l1(0.5, delivery='step')")
    assert one == other
    assert one["spare.weight"] == before.spare.weight.tolist()
    expected = before.used.weight.detach().clone()
    for _ in range(3):
        expected -= 0.1 * (2.0 + 0.5 * expected.sign())
    assert torch.allclose(torch.tensor(one["used.weight"]), expected, atol=1e-6)


def test_loss_delivery_explains_unused_parameters(pair: Pair) -> None:
    """Refused before backward, naming the parameter and the ways out."""
    for words in pair.run(unused, "l1(0.5, delivery='loss')"):
        assert words.startswith("UnsupportedError")
        assert "spare.weight" in words
        assert "delivery='step'" in words
    one, other = pair.run(unused, "l1(0.5, delivery='loss', where='used.*')")
    assert one == other
    assert isinstance(one, dict)


class Alike(regplug.Plugin):
    """Draws noise from a generator of its own, seeded alike on all ranks."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(5)

    @regplug.hookimpl
    def on_gradients(self, session: regplug.Session) -> None:
        for _, _, gradients in session.updates(regplug.Selection("weights")):
            for g in gradients:
                g.add_(torch.randn(g.shape, generator=self._generator))


def replicas(rank: int, spec: Any) -> Any:
    torch.manual_seed(rank)  # a seed per rank, as loaders and dropout want it
    model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [spec]):
        for _ in range(3):
            model(torch.randn(4, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return [p.tolist() for p in model.parameters()]


def test_replicas_with_a_seed_per_rank_do_not_drift(pair: Pair) -> None:
    """The matrix compares the ranks of every plugin."""
    for spec in (Alike(), "dropout(0.5)", "l1(0.1, delivery='proximal')"):
        one, other = pair.run(replicas, spec)
        assert one == other


def wrapped(rank: int, compiled: bool) -> Any:
    model = nn.Linear(3, 2)
    layered = DistributedDataParallel(torch.compile(model, backend="eager") if compiled else model)
    session = regplug.attach(layered, torch.optim.SGD(layered.parameters()), ["l1(0.1)"])
    found = session.model is model, session.coverage(regplug.Selection())[0].name
    session.detach()
    return found


@pytest.mark.parametrize("compiled", [False, True])
def test_wrappers_are_taken_off_and_leave_no_names(pair: Pair, compiled: bool) -> None:
    assert pair.run(wrapped, compiled) == [(True, "weight")] * 2
