"""weight_decay that the loop, a scheduler or another session sets while the plugin decays."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import SpecError

STEPS = 6


def weight_after(optimizer: torch.optim.Optimizer, model: nn.Module, each: Any = None) -> float:
    """Train with gradients of 0, so that the weight moves by decay alone."""
    for step in range(STEPS):
        if each is not None:
            each(step)
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    return float(model.weight.detach().flatten()[0])


def ones() -> nn.Linear:
    model = nn.Linear(2, 2, bias=False).double()
    nn.init.constant_(model.weight, 1.0)
    return model


def cosine(step: int) -> float:
    """DINO's: from 0.04 to 0.4."""
    return 0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * step / STEPS)) / 2


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("first", [0.04, 0.0])
@pytest.mark.parametrize("where", ["all", "weights"])
def test_a_loop_that_sets_it_at_each_step_decays_once_and_is_told_once(
    kind: Any, first: float, where: str
) -> None:
    model = ones()
    optimizer = kind(model.parameters(), lr=0.1, weight_decay=first)
    spec = f"weight_decay(0.45, where='{where}', existing='replace')"
    session = regplug.attach(model, optimizer, [spec])
    group = optimizer.param_groups[0]

    def each(step: int) -> None:
        group["weight_decay"] = cosine(step)

    with pytest.warns(UserWarning, match="since it was attached") as told:
        weight = weight_after(optimizer, model, each)
    assert weight == pytest.approx((1 - 0.1 * 0.45) ** STEPS, rel=1e-12)
    assert len(told) == 1
    message = str(told[0].message)
    assert "weight_decay(cosine(0.04, …" in message
    assert "existing='add'" in message
    # What the loop has set last is the user's own.
    assert optimizer.state_dict()["param_groups"][0]["weight_decay"] == cosine(STEPS - 1)
    session.detach()
    assert group["weight_decay"] == cosine(STEPS - 1)


def test_a_loop_that_sets_it_while_the_strength_is_0_decays_not_at_all() -> None:
    model = ones()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, ["weight_decay(0.0, existing='replace')"])

    def each(step: int) -> None:
        optimizer.param_groups[0]["weight_decay"] = 0.3

    with pytest.warns(UserWarning, match="no effect"):
        assert weight_after(optimizer, model, each) == 1.0


def test_a_loop_that_sets_it_to_0_is_not_told() -> None:
    model = ones()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    session = regplug.attach(model, optimizer, ["weight_decay(0.45, existing='replace')"])

    def each(step: int) -> None:
        optimizer.param_groups[0]["weight_decay"] = 0

    weight = weight_after(optimizer, model, each)
    assert weight == pytest.approx((1 - 0.1 * 0.45) ** STEPS, rel=1e-12)
    session.detach()
    assert optimizer.param_groups[0]["weight_decay"] == 0


class DecayScheduler:
    """A scheduler of weight decay, as widely written."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.count = optimizer, 0

    def step(self) -> None:
        self.count += 1
        for group in self.optimizer.param_groups:
            if group["weight_decay"] != 0:
                group["weight_decay"] *= 0.5


def test_a_scheduler_of_decay_that_spares_groups_at_0_leaves_the_replaced_alone() -> None:
    model = ones()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    regplug.attach(model, optimizer, ["weight_decay(0.45, existing='replace')"])
    scheduler = DecayScheduler(optimizer)
    weight = weight_after(optimizer, model, lambda step: scheduler.step())
    assert weight == pytest.approx((1 - 0.1 * 0.45) ** STEPS, rel=1e-12)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_decay_that_is_set_later_beside_the_plugin_is_an_error(kind: Any) -> None:
    model = ones()
    optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.0)
    session = regplug.attach(model, optimizer, ["weight_decay(0.45)"])

    def each(step: int) -> None:
        if step == 3:
            optimizer.param_groups[0]["weight_decay"] = 0.04

    message = (
        r"weight_decay=0\.04 was set in group 0 of this .*both would decay.*cosine.*"
        r"existing='replace' .*existing='add'"
    )
    with pytest.raises(SpecError, match=message):
        weight_after(optimizer, model, each)
    assert session.steps == 3
    before = model.weight.detach().clone()
    assert torch.equal(before, torch.full_like(before, (1 - 0.1 * 0.45) ** 3)) or torch.allclose(
        before, torch.full_like(before, (1 - 0.1 * 0.45) ** 3), rtol=1e-12
    )


def test_both_act_where_that_is_asked_for() -> None:
    model = ones()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.04)
    regplug.attach(model, optimizer, ["weight_decay(0.45, existing='add')"])

    def each(step: int) -> None:
        optimizer.param_groups[0]["weight_decay"] = cosine(step)

    expected = 1.0
    for step in range(STEPS):
        expected *= (1 - 0.1 * 0.45) * (1 - 0.1 * cosine(step))
    assert weight_after(optimizer, model, each) == pytest.approx(expected, rel=1e-12)


def test_the_way_out_that_is_named_is_dinos_schedule() -> None:
    model = ones()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    regplug.attach(model, optimizer, [f"weight_decay(cosine(0.04, 0.4, steps={STEPS}))"])
    expected = 1.0
    for step in range(STEPS):
        expected *= 1 - 0.1 * cosine(step)
    assert weight_after(optimizer, model) == pytest.approx(expected, rel=1e-12)


# Two sessions on one optimizer


def halves() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    return model, torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.25)


@pytest.mark.parametrize("first", [0, 1])
def test_two_sessions_that_replace_parts_of_one_group_give_it_back_in_any_order(first: int) -> None:
    model, optimizer = halves()
    group = optimizer.param_groups[0]
    sessions = [
        regplug.attach(model, optimizer, [f"weight_decay({s}, where='{s}.*', existing='replace')"])
        for s in (0, 1)
    ]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["weight_decay"] == 0.25
    sessions[first].detach()
    # The other one still takes over what the optimizer does.
    assert group["weight_decay"] == 0.0
    assert optimizer.state_dict()["param_groups"][0]["weight_decay"] == 0.25
    sessions[1 - first].detach()
    assert (group["weight_decay"], type(group["weight_decay"])) == (0.25, float)


def test_decay_that_another_session_gives_back_beside_this_one_is_an_error() -> None:
    model, optimizer = halves()
    one = regplug.attach(
        model, optimizer, ["weight_decay(0.1, where='0.*', existing='replace')"], name="one"
    )
    regplug.attach(model, optimizer, ["weight_decay(0.1, where='1.*')"], name="two")
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    one.detach()
    with pytest.raises(SpecError, match=r"weight_decay=0\.25 was set in group 0"):
        optimizer.step()


class Watch(regplug.Plugin):
    """Sees the weights that the update will see."""

    changes_weights = False

    def __init__(self) -> None:
        self.seen: list[float] = []

    @regplug.hookimpl
    def before_step(self, session: regplug.Session) -> None:
        self.seen.append(float(session.model.weight.detach().flatten()[0]))


@pytest.mark.parametrize("order", ["decay first", "decay last"])
def test_another_sessions_plugin_sees_alike_weights_under_adam_and_adamw(order: str) -> None:
    seen = {}
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        model = ones()
        optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.0)
        watch = Watch()
        sessions = [("decay", ["weight_decay(0.5, where='all')"]), ("watch", [watch])]
        if order == "decay last":
            sessions.reverse()
        made = [regplug.attach(model, optimizer, plugins, name=name) for name, plugins in sessions]
        weight_after(optimizer, model)
        if order == "decay first":
            assert "itself" not in made[0].describe()
        seen[kind] = watch.seen
    shift = 1 if order == "decay first" else 0
    expected = [0.95 ** (step + shift) for step in range(STEPS)]
    assert seen[torch.optim.Adam] == pytest.approx(expected, rel=1e-12)
    assert seen[torch.optim.AdamW] == pytest.approx(expected, rel=1e-12)


def test_a_session_that_comes_later_sees_decayed_weights_and_gives_the_update_back() -> None:
    model = ones()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    decay = regplug.attach(model, optimizer, ["weight_decay(0.5, where='all')"])
    assert "AdamW itself" in decay.describe()
    weight_after(optimizer, model)
    watch = Watch()
    with regplug.attach(model, optimizer, [watch], name="watch"):
        assert "AdamW itself" not in decay.describe()
        weight_after(optimizer, model)
    assert "AdamW itself" in decay.describe()
    weight = weight_after(optimizer, model)
    assert watch.seen == pytest.approx(
        [0.95**step for step in range(STEPS + 1, 2 * STEPS + 1)], rel=1e-12
    )
    assert weight == pytest.approx(0.95 ** (3 * STEPS), rel=1e-12)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(
    "other", ["l2(0.3, delivery='step')", "l1(0.3, delivery='proximal')", "weight_decay(0.4)"]
)
def test_another_sessions_plugins_act_alike_under_adam_and_adamw(order: int, other: str) -> None:
    weights = []
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        model = ones()
        optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.0)
        specs = ["weight_decay(0.5, where='all')", other]
        for spec in specs if order == 0 else specs[::-1]:
            regplug.attach(model, optimizer, [spec], name=spec)
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(torch.ones(1, 2, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
        weights.append(model.weight.detach())
    # Bit for bit but for the order of two products.
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-14, atol=0)


def test_a_session_that_came_before_leaves_the_decay_to_the_update() -> None:
    model = ones()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    regplug.attach(model, optimizer, ["l1(0.0)"])
    decay = regplug.attach(model, optimizer, ["weight_decay(0.5, where='all')"])
    weight_after(optimizer, model)
    assert "AdamW itself" in decay.describe()


def test_a_compiled_update_under_a_moving_strength_is_not_compiled_anew_at_each_step() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = ones()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    regplug.attach(model, optimizer, ["weight_decay(linear(0.5, 0, steps=12), where='all')"])
    step = torch.compile(optimizer.step, backend="eager")
    expected = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for count in range(12):
            model.weight.grad = torch.zeros_like(model.weight)
            step()
            expected *= 1 - 0.1 * (0.5 - 0.5 * count / 12)
    assert float(model.weight.detach()[0, 0]) == pytest.approx(expected, rel=1e-12)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
    torch._dynamo.reset()
