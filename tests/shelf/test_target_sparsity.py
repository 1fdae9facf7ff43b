"""The share of zeros that was asked for, at each step, and the lasso's strength that leaves it."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from sklearn.linear_model import Lasso
from torch import nn
from torch.distributed.fsdp import fully_shard

import regplug
from regplug_builtins import TargetSparsity
from regplug_builtins._kth import kth_smallest
from tests.helpers.compare import same
from tests.helpers.nets import one_layer, tanh_net
from tests.helpers.pair import Pair

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


def zeros(model: nn.Module) -> int:
    return sum(int((p == 0).sum()) for p in model.parameters() if p.ndim > 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zeros_follow_the_ramp_and_stay_where_it_ends(optimizer: str, dtype: torch.dtype) -> None:
    model = tanh_net(10, 20, 3).to(dtype)
    trained = OPTIMIZERS[optimizer](model.parameters())
    count = 10 * 20 + 20 * 3
    shares = []
    with regplug.attach(model, trained, ["target_sparsity(0.9, by=40)"]) as session:
        for step in range(80):
            trained.zero_grad()
            x = torch.randn(16, 10, dtype=dtype)  # anew each time: noise moves zeros away
            (model(x) - x[:, :3].sin()).square().mean().backward()
            trained.step()
            wanted = math.ceil(0.9 * min((step + 1) / 40, 1) * count - 1e-6)
            assert wanted <= zeros(model) <= wanted + 1
            shares.append(session.metrics()["target_sparsity/zeros"])
    assert shares == sorted(shares)
    assert 0.9 <= shares[-1] <= 0.9 + 1 / count


def test_where_it_comes_to_rest_it_is_the_lasso_of_its_strength() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 12, generator=generator, dtype=torch.float64)
    y = x[:, :4] @ torch.tensor([3.0, -2.0, 1.0, 0.5], dtype=torch.float64)
    y = y + 0.3 * torch.randn(60, generator=generator, dtype=torch.float64)
    model = one_layer(*torch.randn(12, generator=generator).tolist())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["target_sparsity(0.75, by=200)"])
    for _ in range(3000):
        optimizer.zero_grad()
        ((model(x)[:, 0] - y).square().mean() / 2).backward()
        optimizer.step()
    alpha = session.metrics()["target_sparsity/strength"]
    lasso = Lasso(alpha=alpha, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(x, y)
    assert int((model.weight == 0).sum()) == 9
    expected = torch.as_tensor(lasso.coef_)[None]
    torch.testing.assert_close(model.weight.detach(), expected, rtol=0, atol=1e-9)


def test_one_strength_serves_all_layers_and_one_may_be_emptier() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)).double()
    model[1].weight.data.mul_(100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, ["target_sparsity(0.5)"])
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    expected = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    threshold = torch.cat([w.abs().flatten() for w in expected]).sort().values[63]
    for w, p in zip(expected, model.parameters(), strict=True):
        soft = w.sign() * (w.abs() - threshold).clamp(min=0)
        torch.testing.assert_close(p.detach(), soft, rtol=0, atol=1e-13)
    first, second = (int((p == 0).sum()) for p in model.parameters())
    assert first > 50 > 14 > second
    assert first + second == 64


def test_weights_that_never_had_a_gradient_are_left_alone_and_not_counted() -> None:
    model = nn.Embedding(10, 4).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, ["target_sparsity(0.5)"])
    before = model.weight.detach().clone()
    model(torch.tensor([1, 2])).square().sum().backward()
    optimizer.step()
    unseen = [i for i in range(10) if i not in (1, 2)]
    assert torch.equal(model.weight[unseen], before[unseen])
    assert int((model.weight[[1, 2]] == 0).sum()) == 4


def test_more_zeros_than_asked_for_take_no_strength() -> None:
    model = one_layer(0.0, 0.0, 0.0, 2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["target_sparsity(0.5)"])
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    assert model.weight.tolist() == [[0, 0, 0, 2]]
    assert session.metrics()["target_sparsity/strength"] == 0


def test_it_is_resumed_to_the_bit_with_its_strength() -> None:
    def run(model: Any, optimizer: Any, session: Any, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
            model(x).square().mean().backward()
            optimizer.step()

    def make() -> Any:
        model = tanh_net(6, 9, 2)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        return model, optimizer, regplug.attach(model, optimizer, ["target_sparsity(0.8, by=9)"])

    straight, resumed = make(), make()
    run(*straight, range(5))
    for whole, anew in zip(straight, resumed, strict=True):
        anew.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert resumed[2].metrics() == straight[2].metrics()
    assert resumed[2].metrics()["target_sparsity/strength"] > 0
    run(*straight, range(5, 12))
    run(*resumed, range(5, 12))
    assert same(straight[0], resumed[0])
    assert same(straight[2].state_dict(), resumed[2].state_dict())


def sharded(rank: int, how: str) -> list[tuple[float, float]]:
    """Return share and strength after each step, of the whole model, as every rank tells them."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 5), nn.Linear(5, 1))
    model, called = model.double(), model
    if how == "fsdp2":
        mesh = dist.init_device_mesh("cpu", (2,))
        for layer in (model[0], model[2], model[3]):
            fully_shard(layer, mesh=mesh)
        called = fully_shard(model, mesh=mesh)
    elif how == "ddp":
        called = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    told = []
    data = torch.Generator().manual_seed(1)
    with regplug.attach(called, optimizer, ["target_sparsity(0.8, by=10)"]) as session:
        for _ in range(15):
            x = torch.randn(8, 6, generator=data, dtype=torch.float64)
            optimizer.zero_grad()
            called(x if how == "alone" else x.chunk(2)[rank]).square().mean().backward()
            optimizer.step()
            found = session.metrics()
            told.append((found["target_sparsity/zeros"], found["target_sparsity/strength"]))
    return told


def test_the_share_is_the_whole_models_on_all_ranks(pair: Pair) -> None:
    wanted = sharded(0, "alone")
    assert [math.ceil(0.08 * (t + 1) * 49 - 1e-6) for t in range(10)] == [
        round(share * 49) for share, _ in wanted[:10]
    ]
    for how in ("ddp", "fsdp2"):
        first, second = pair.run(sharded, how)
        assert first == second
        for found, expected in zip(first, wanted, strict=True):
            assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kth_smallest_is_that_of_a_sorted_list(dtype: torch.dtype) -> None:
    numbers = torch.randn(1000, dtype=dtype).exp().pow(9)
    numbers[:50] = numbers[0]  # ties
    numbers[50:60] = 0
    parts = [(p, p) for p in (numbers[:1], numbers[1:400], numbers[400:400], numbers[400:])]
    left_out = torch.tensor([torch.inf, torch.nan], dtype=dtype)
    for k in (1, 5, 11, 12, 500, 999, 1000):
        found = kth_smallest(lambda: [*parts, (left_out, left_out)], k / 1000)
        exact = numbers.sort().values[k - 1]
        assert exact <= found <= exact * (1 + 8 * torch.finfo(dtype).eps)
    assert kth_smallest(lambda: parts, 0.0) == 0
    assert kth_smallest(lambda: [(left_out, left_out)], 0.5) == 0


@pytest.mark.parametrize("by", [None, 4])
def test_a_schedule_is_followed_in_its_steps_and_by_leads_to_it(by: int | None) -> None:
    model = one_layer(*range(1, 101))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = regplug.schedules.piecewise({0: 0.0, 1: 0.4, 3: 0.8})
    plugin = TargetSparsity(schedule, by=by)
    assert (plugin.sparsity, plugin.by) == (0.0, by)
    session = regplug.attach(model, optimizer, [plugin])
    found = []
    for _ in range(5):
        with torch.no_grad():
            model.weight.copy_(torch.arange(1.0, 101.0))
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        found.append(int((model.weight == 0).sum()))
    assert found == ([0, 40, 40, 80, 80] if by is None else [0, 20, 30, 80, 80])
    assert session.metrics()["target_sparsity/sparsity"] == 0.8


def test_what_can_not_be_is_refused() -> None:
    with pytest.raises(regplug.errors.SpecError, match="within"):
        TargetSparsity(1.5)
    for steps in (0, -1, 1.5, True):
        with pytest.raises(regplug.errors.SpecError, match="by must be a whole number of steps"):
            TargetSparsity(0.5, by=steps)  # type: ignore[arg-type]
    model = one_layer(1.0, 2.0)
    with pytest.raises(regplug.errors.UnsupportedError, match="LBFGS"):
        regplug.attach(model, torch.optim.LBFGS(model.parameters()), ["target_sparsity(0.5)"])
    with pytest.raises(regplug.errors.UnsupportedError, match=r"Rprop.*a penalty may"):
        regplug.attach(model, torch.optim.Rprop(model.parameters()), ["target_sparsity(0.5)"])


def test_no_step_is_computed_to_see_what_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where numbers are read, and where they are used, it is a pass over the weights."""
    computed, before = [0], []

    def finding(numbers: Any, share: float) -> torch.Tensor:
        before.append(computed[0])
        return kth_smallest(numbers, share)

    def step(*arguments: Any) -> torch.Tensor:
        computed[0] += 1
        return rule.step(*arguments)

    model = tanh_net(3, 4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    session = regplug.attach(model, optimizer, ["target_sparsity(0.5)"])
    rule = session.update_rule()
    watched = dataclasses.replace(rule, step=step)
    monkeypatch.setattr(session, "update_rule", lambda: watched)
    monkeypatch.setattr("regplug_builtins.target_sparsity.kth_smallest", finding)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert before == [0]
    assert computed[0] >= 4  # two weights, which are read and used
