"""Constrained parameter regularization against the paper's pseudocode, in plain floats."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import regplug
from regplug_builtins import CPR
from tests.helpers.compare import close, same
from tests.helpers.nets import one_layer, tanh_net
from tests.helpers.pair import Pair


def mean_square(w: torch.Tensor) -> float:
    return math.fsum(v * v for v in w.flatten().tolist()) / w.numel()


class Pseudocode:
    """Algorithm 1 of Franke et al. for one parameter: λ and κ, and the bound's initialization."""

    def __init__(self, w: torch.Tensor, init: str, kappa: float, rate: float) -> None:
        self.init, self.kappa, self.rate = init, kappa, rate
        self.lagrange = 0.0
        self.bound = {"uniform": kappa, "dependent": kappa * mean_square(w)}.get(init, math.inf)
        self.seen = [mean_square(w)]

    def after(self, w: torch.Tensor) -> torch.Tensor:
        """Return the parameter after a step of the optimizer led to ``w``."""
        size = mean_square(w)
        self.lagrange = max(self.lagrange + self.rate * (size - self.bound), 0.0)
        self.seen.append(size)
        if self.init == "warm_start" and len(self.seen) == self.kappa + 1:
            self.bound = size
        if self.init == "inflection" and self.bound == math.inf and len(self.seen) > 2:
            first, second, third = self.seen[-3:]
            if third - 2 * second + first < 0:
                self.bound = size
        return w - self.lagrange * 2 * w


CASES = [
    ("uniform", 0.05, 1.0),
    ("uniform", 0.05, 0.1),
    ("dependent", 0.7, 1.0),
    ("warm_start", 3, 1.0),
    ("inflection", None, 1.0),
]


@pytest.mark.parametrize(("init", "kappa", "rate"), CASES)
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_it_is_the_pseudocode(init: str, kappa: Any, rate: float, kind: str) -> None:
    ours, theirs = tanh_net(5, 8, 2).double(), tanh_net(5, 8, 2).double()
    optimizers = [
        getattr(torch.optim, kind)(m.parameters(), lr=0.1 if kind == "SGD" else 0.02)
        for m in (ours, theirs)
    ]
    weights = [p for p in theirs.parameters() if p.ndim > 1]
    by_hand = [Pseudocode(w, init, kappa or 0, rate) for w in weights]
    session = regplug.attach(ours, optimizers[0], [CPR(init=init, kappa=kappa, rate=rate)])
    for step in range(40):
        x = torch.randn(9, 5, dtype=torch.float64)
        y = (3 + step / 10) * x[:, :2].sin()
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            for w, state in zip(weights, by_hand, strict=True):
                w.copy_(state.after(w))
        for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
            close(found, expected)
    multipliers = [state.lagrange for state in by_hand]
    told = session.metrics()
    assert told["cpr/multiplier"] == pytest.approx(sum(multipliers) / len(multipliers), abs=1e-12)
    assert told["cpr/largest"] == pytest.approx(max(multipliers), abs=1e-12)
    assert told["cpr/bounded"] == len(weights)
    assert any(multipliers)  # it did act


def test_the_bound_holds_in_the_long_run() -> None:
    model = tanh_net(6, 10, 1).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    regplug.attach(model, optimizer, ["cpr(init='uniform', kappa=0.02)"])
    x = torch.randn(64, 6, dtype=torch.float64)
    for _ in range(800):
        optimizer.zero_grad()
        (model(x) - 4 * x[:, :1].sin()).square().mean().backward()
        optimizer.step()
    for w in (model[0].weight, model[2].weight):
        assert mean_square(w.detach()) <= 0.02 * 1.05


def test_a_parameter_that_takes_no_part_keeps_its_multiplier() -> None:
    model = nn.ModuleList([one_layer(2.0, 1.0), one_layer(1.0, 3.0)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["cpr(init='uniform', kappa=1)"])
    for taking in ([0, 1], [1], [0], [1], [1]):
        for row, layer in enumerate(model):
            layer.weight.grad = torch.zeros_like(layer.weight) if row in taking else None
        optimizer.step()
    expected, by_hand = [], []
    for first, second, times in ((2.0, 1.0, 2), (1.0, 3.0, 4)):
        w = torch.tensor([[first, second]], dtype=torch.float64)
        state = Pseudocode(w, "uniform", 1.0, 1.0)
        for _ in range(times):
            w = state.after(w)
        expected.append(w)
        by_hand.append(state.lagrange)
    for layer, w in zip(model, expected, strict=True):
        close(layer.weight, w)
    assert session.metrics()["cpr/largest"] == pytest.approx(max(by_hand))


def test_parameters_that_come_later_begin_when_they_come() -> None:
    model = nn.ModuleList([one_layer(2.0, 1.0), one_layer(1.0, 3.0)])
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["cpr(init='dependent', kappa=0.5)"])

    def step() -> None:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()

    step()
    optimizer.add_param_group({"params": list(model[1].parameters())})
    step()
    for layer, times in zip(model, (2, 1), strict=True):
        w = torch.tensor([[2.0, 1.0] if times == 2 else [1.0, 3.0]], dtype=torch.float64)
        state = Pseudocode(w, "dependent", 0.5, 1.0)
        for _ in range(times):
            w = state.after(w)
        close(layer.weight, w)
    assert session.metrics()["cpr/bounded"] == 2


@pytest.mark.parametrize(("init", "kappa"), [("inflection", None), ("warm_start", 4)])
def test_it_is_resumed_to_the_bit(init: str, kappa: Any) -> None:
    def make() -> Any:
        model = tanh_net(6, 9, 2)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        plugin = CPR(init=init, kappa=kappa)
        return model, optimizer, regplug.attach(model, optimizer, [plugin])

    def run(made: Any, steps: range) -> None:
        model, optimizer, _ = made
        for step in steps:
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            (model(x) - 3 * x[:, :2].sin()).square().mean().backward()
            optimizer.step()

    straight, resumed = make(), make()
    run(straight, range(3))
    for whole, anew in zip(straight, resumed, strict=True):
        anew.load_state_dict(copy.deepcopy(whole.state_dict()))
    run(straight, range(3, 40))
    run(resumed, range(3, 40))
    assert same(straight[0], resumed[0])
    assert same(straight[2].state_dict(), resumed[2].state_dict())
    assert straight[2].metrics()["cpr/bounded"] > 0


def sharded(rank: int, shard: bool) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    if shard:
        mesh = dist.init_device_mesh("cpu", (2,))
        for layer in (model[0], model[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, ["cpr(init='dependent', kappa=0.6)"]) as session:
        for step in range(6):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step)).double()
            optimizer.zero_grad()
            model(x.chunk(2)[rank] if shard else x).square().mean().backward()
            optimizer.step()
        saved = session.state_dict()["plugins"]["cpr"]["adapted"]["_known"]
    weights = [p.full_tensor() if shard else p for p in model.parameters()]
    return [*(w.detach() for w in weights), saved["multipliers"]]


def test_norms_are_of_whole_parameters_and_states_load_on_other_ranks(pair: Pair) -> None:
    expected = sharded(0, False)
    for found in pair.run(sharded, True):
        for ours, theirs in zip(found, expected, strict=True):
            close(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"init": "somewhere"}, "init must be one of inflection, warm_start"),
        ({"kappa": 1.0}, "no meaning"),
        ({"init": "uniform"}, "needs a kappa"),
        ({"init": "uniform", "kappa": 0}, "above 0"),
        ({"init": "warm_start", "kappa": 1.5}, "whole number of steps"),
        ({"init": "dependent", "kappa": math.inf}, "above 0"),
        ({"rate": -1}, "rate must be a number above 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments: Any, words: str) -> None:
    with pytest.raises(regplug.errors.SpecError, match=words):
        CPR(**arguments)


def test_states_of_other_parameters_are_refused_and_nothing_changes() -> None:
    sessions = []
    for widths in ((3, 4), (3, 4, 2)):
        model = tanh_net(*widths)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        session = regplug.attach(model, optimizer, ["cpr(init='uniform', kappa=1)"])
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        sessions.append(session)
    before = sessions[0].state_dict()
    with pytest.raises(regplug.errors.RegplugError, match=r"2\.weight"):
        sessions[0].load_state_dict(sessions[1].state_dict())
    assert same(sessions[0].state_dict(), before)


def test_decay_beside_it_is_said() -> None:
    for decay, said in ((0.1, True), (0.0, False)):
        model = one_layer(1.0, 2.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=decay)
        with regplug.attach(model, optimizer, [CPR()]) as session:
            assert ("weight_decay acts too" in session.describe()) is said


def test_inflections_are_found_one_by_one() -> None:
    model = nn.ModuleList([one_layer(1.0), one_layer(1.0)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    session = regplug.attach(model, optimizer, ["cpr()"])
    curves = ([1, 4, 9, 16, 20, 25], [1, 4, 5, 9, 16, 30])  # of R; they bend at the 5th, the 3rd
    bounded = []
    for values in itertools.islice(zip(*curves, strict=True), 1, None):
        for layer, value in zip(model, values, strict=True):
            layer.weight.grad = layer.weight.detach() - math.sqrt(value)
        optimizer.step()
        bounded.append(session.metrics()["cpr/bounded"])
    assert bounded == [0, 1, 1, 2, 2]


def steps_of(model: nn.Module, optimizer: Any, times: int) -> None:
    for _ in range(times):
        for p in model.parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        optimizer.step()


def by_hand_of(*weights: float, times: int) -> torch.Tensor:
    w = torch.tensor([weights], dtype=torch.float64)
    state = Pseudocode(w, "dependent", 0.5, 1.0)
    for _ in range(times):
        w = state.after(w)
    return w


def test_what_is_trained_later_gets_its_bound_then() -> None:
    model = nn.ModuleList([one_layer(2.0, 1.0), one_layer(1.0, 3.0)])
    model[1].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["cpr(init='dependent', kappa=0.5)"])
    steps_of(model, optimizer, 2)
    model[1].weight.requires_grad_(True)
    with torch.no_grad():
        model[1].weight.mul_(2)  # loaded in between: the bound is of what is trained
    steps_of(model, optimizer, 3)
    close(model[0].weight, by_hand_of(2.0, 1.0, times=5))
    close(model[1].weight, by_hand_of(2.0, 6.0, times=3))
    assert session.metrics()["cpr/bounded"] == 2


@pytest.mark.parametrize("others", ["come", "stay"])
def test_what_is_frozen_for_a_while_keeps_its_bound(others: str) -> None:
    model = nn.ModuleList([one_layer(2.0, 1.0), one_layer(1.0, 3.0), one_layer(1.0, 1.0)])
    optimizer = torch.optim.SGD(model[:2].parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["cpr(init='dependent', kappa=0.5)"])
    steps_of(model, optimizer, 2)
    model[1].weight.requires_grad_(False)
    if others == "come":
        optimizer.add_param_group({"params": list(model[2].parameters())})
    steps_of(model, optimizer, 1)
    model[1].weight.requires_grad_(True)
    steps_of(model, optimizer, 2)
    close(model[0].weight, by_hand_of(2.0, 1.0, times=5))
    close(model[1].weight, by_hand_of(1.0, 3.0, times=4))
    assert session.metrics()["cpr/bounded"] == (3 if others == "come" else 2)
