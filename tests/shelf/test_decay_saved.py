"""What is saved or copied of an optimizer is the user's own decay, at any moment."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, get_state_dict

import regplug
from tests.helpers.nets import tanh_net

OWN = 0.25


def backward(model: nn.Module) -> None:
    model.zero_grad()
    model(torch.ones(2, 4)).square().mean().backward()


def through_a_file(thing: Any, *, weights_only: bool) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


# Each returns the groups as they come back.
WAYS: dict[str, Callable[[torch.optim.Optimizer], list[dict[str, Any]]]] = {
    "state_dict": lambda o: o.state_dict()["param_groups"],
    "saved state_dict": lambda o: through_a_file(o.state_dict(), weights_only=True)["param_groups"],
    "deepcopy": lambda o: copy.deepcopy(o).param_groups,
    "deepcopy of groups": lambda o: copy.deepcopy(o.param_groups),
    "pickle": lambda o: pickle.loads(pickle.dumps(o)).param_groups,
    "saved optimizer": lambda o: through_a_file(o, weights_only=False).param_groups,
    "saved groups": lambda o: through_a_file(o.param_groups, weights_only=False),
    "copied values": lambda o: [{k: copy.copy(v) for k, v in g.items()} for g in o.param_groups],
}

# Lent to AdamW's own update in whole, held at 0 where the plugin decays, and both.
KINDS: dict[str, tuple[Any, float, str]] = {
    "lent": (torch.optim.AdamW, 0.0, "weight_decay(0.5, where='all')"),
    "replaced and lent": (
        torch.optim.AdamW,
        OWN,
        "weight_decay(0.5, where='all', existing='replace')",
    ),
    "lent by l2": (torch.optim.SGD, OWN, "l2(0.5, where='all', delivery='step')"),
    "replaced": (torch.optim.AdamW, OWN, "weight_decay(0.5, existing='replace')"),
    "replaced in SGD": (torch.optim.SGD, OWN, "weight_decay(0.5, existing='replace')"),
    "replaced, cautious": (
        torch.optim.AdamW,
        OWN,
        "weight_decay(0.5, existing='replace', cautious=True)",
    ),
}


def saves(optimizer: torch.optim.Optimizer, into: list[dict[str, Any]]) -> None:
    into.append({name: way(optimizer)[0]["weight_decay"] for name, way in WAYS.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_at_any_moment_of_a_step_is_the_users(kind: str) -> None:
    make, own, spec = KINDS[kind]
    model = tanh_net(4, 8, 3)
    optimizer = make(model.parameters(), lr=0.1, weight_decay=own)
    seen: list[dict[str, Any]] = []
    optimizer.register_step_pre_hook(lambda *_: saves(optimizer, seen))
    optimizer.register_step_post_hook(lambda *_: saves(optimizer, seen))
    session = regplug.attach(model, optimizer, [spec])
    optimizer.register_step_pre_hook(lambda *_: saves(optimizer, seen))
    optimizer.register_step_post_hook(lambda *_: saves(optimizer, seen))

    def closure() -> torch.Tensor:
        saves(optimizer, seen)
        model.zero_grad()
        loss = model(torch.ones(2, 4)).square().mean()
        loss.backward()
        return loss

    backward(model)
    optimizer.step()
    optimizer.step(closure)
    saves(optimizer, seen)
    session.detach()
    saves(optimizer, seen)
    assert len(seen) == 4 + 5 + 2
    for values in seen:
        assert values == dict.fromkeys(WAYS, own)
        assert {type(value) for value in values.values()} == {float}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_step_that_is_broken_off_leaves_the_users_decay_to_be_saved(
    kind: str, error: Any
) -> None:
    make, own, spec = KINDS[kind]
    model = tanh_net(4, 8, 3)
    optimizer = make(model.parameters(), lr=0.1, weight_decay=own)
    session = regplug.attach(model, optimizer, [spec])

    def breaks(*_: Any) -> None:
        raise error("right after before_step")

    handle = optimizer.register_step_pre_hook(breaks)
    backward(model)
    with pytest.raises(error):
        optimizer.step()
    seen: list[dict[str, Any]] = []
    saves(optimizer, seen)
    assert seen == [dict.fromkeys(WAYS, own)]
    handle.remove()
    optimizer.step()
    saves(optimizer, seen)
    assert seen[1] == seen[0]
    session.detach()
    assert optimizer.param_groups[0]["weight_decay"] == own
    assert type(optimizer.param_groups[0]["weight_decay"]) is float


def test_an_update_that_raises_leaves_nothing_lent_after_detach() -> None:
    model = tanh_net(4, 8, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    session = regplug.attach(model, optimizer, ["weight_decay(0.5, where='all')"])
    backward(model)
    weight = model[0].weight
    weight.grad = weight.grad.to_sparse()  # which AdamW refuses, within its update
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["weight_decay"] == 0.0
    session.detach()
    assert optimizer.param_groups[0]["weight_decay"] == 0.0
    assert type(optimizer.param_groups[0]["weight_decay"]) is float


class Faulty(regplug.Plugin):
    @regplug.hookimpl
    def after_step(self, session: regplug.Session) -> None:
        raise ValueError("no")


def test_an_error_of_another_plugin_after_the_update_leaves_the_users_decay_to_be_saved() -> None:
    model = tanh_net(4, 8, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    regplug.attach(model, optimizer, [Faulty(), "weight_decay(0.5, where='all')"])
    backward(model)
    with pytest.raises(regplug.errors.PluginError, match="no"):
        optimizer.step()
    seen: list[dict[str, Any]] = []
    saves(optimizer, seen)
    assert seen == [dict.fromkeys(WAYS, 0.0)]
    assert optimizer.param_groups[0]["weight_decay"] == 0.0


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        backward(model)
        optimizer.step()


def test_a_script_without_regplug_goes_on_from_the_checkpoint_with_its_own_decay() -> None:
    model = tanh_net(4, 8, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=OWN)
    regplug.attach(model, optimizer, ["weight_decay(0.5, existing='replace')"])
    steps(model, optimizer, 2)
    state = through_a_file(optimizer.state_dict(), weights_only=True)
    resumed, written = tanh_net(4, 8, 3), tanh_net(4, 8, 3)
    for twin in (resumed, written):
        twin.load_state_dict(model.state_dict())
    plain = torch.optim.AdamW(resumed.parameters(), lr=0.1)
    plain.load_state_dict(copy.deepcopy(state))
    by_hand = torch.optim.AdamW(written.parameters(), lr=0.1)
    by_hand.load_state_dict(state)
    by_hand.param_groups[0]["weight_decay"] = OWN
    steps(resumed, plain, 2)
    steps(written, by_hand, 2)
    assert plain.param_groups[0]["weight_decay"] == OWN
    for a, b in zip(resumed.parameters(), written.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_resumed_script_attaches_after_loading_and_gives_back_its_own_decay() -> None:
    spec = "weight_decay(0.5, where='all', existing='replace')"
    model = tanh_net(4, 8, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=OWN)
    regplug.attach(model, optimizer, [spec])
    steps(model, optimizer, 2)
    weights = copy.deepcopy(model.state_dict())
    state = through_a_file(optimizer.state_dict(), weights_only=True)
    steps(model, optimizer, 2)
    resumed = tanh_net(4, 8, 3)
    resumed.load_state_dict(weights)
    fresh = torch.optim.AdamW(resumed.parameters(), lr=0.1)
    fresh.load_state_dict(state)
    session = regplug.attach(resumed, fresh, [spec])
    steps(resumed, fresh, 2)
    for a, b in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    session.detach()
    assert fresh.param_groups[0]["weight_decay"] == OWN


@pytest.mark.parametrize("kind", KINDS)
def test_distributed_checkpoints_hold_the_users_decay(kind: str) -> None:
    make, own, spec = KINDS[kind]
    model = tanh_net(4, 8, 3)
    optimizer = make(model.parameters(), lr=0.1, weight_decay=own)
    regplug.attach(model, optimizer, [spec])
    seen = []

    def look(*_: Any) -> None:
        seen.append(get_optimizer_state_dict(model, optimizer)["param_groups"][0])
        seen.append(get_state_dict(model, optimizer)[1]["param_groups"][0])

    steps(model, optimizer, 1)
    look()
    optimizer.register_step_pre_hook(look)
    steps(model, optimizer, 1)
    assert [(group["weight_decay"], type(group["weight_decay"])) for group in seen] == [
        (own, float)
    ] * 4


def test_checkpoints_of_accelerate_hold_the_users_decay(tmp_path: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = tanh_net(4, 8, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=OWN)
    model, optimizer = accelerator.prepare(model, optimizer)
    spec = "weight_decay(0.5, where='all', existing='replace')"
    with regplug.attach(model, optimizer, [spec], accelerator=accelerator):
        steps(model, optimizer, 1)
        accelerator.save_state(str(tmp_path))
        saved = torch.load(tmp_path / "optimizer.bin", weights_only=True)
        assert saved["param_groups"][0]["weight_decay"] == OWN
        accelerator.load_state(str(tmp_path))
        assert optimizer.param_groups[0]["weight_decay"] == 0.0
    assert optimizer.param_groups[0]["weight_decay"] == OWN


class Outer(torch.optim.Optimizer):
    """As SAM is widely written: an optimizer around another, with its groups."""

    def __init__(self, params: Any, base: Any, **settings: Any) -> None:
        super().__init__(params, {"rho": 0.05, **settings})
        self.base_optimizer = base(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure: Any = None) -> None:
        self.base_optimizer.step()


class Second(Outer):
    """Updates in a method of another name."""

    def second_step(self) -> None:
        self.base_optimizer.step()


@pytest.mark.parametrize("own", [OWN, 0.0])
def test_what_is_lent_stays_out_of_the_state_of_an_optimizer_around_this_one(own: float) -> None:
    model = tanh_net(4, 8, 3)
    outer = Second(model.parameters(), torch.optim.AdamW, lr=0.1, weight_decay=own)
    inner = outer.base_optimizer
    regplug.attach(model, inner, ["weight_decay(0.5, where='all', existing='replace')"])
    backward(model)
    outer.second_step()  # from here on it is known that there is one around
    seen = []
    inner.register_step_pre_hook(
        lambda *_: seen.append(through_a_file(outer.state_dict(), weights_only=True))
    )
    for _ in range(2):
        backward(model)
        outer.second_step()
    assert [state["param_groups"][0]["weight_decay"] for state in seen] == [own, own]


def test_an_optimizer_around_this_one_saves_the_users_decay_too() -> None:
    model = tanh_net(4, 8, 3)
    outer = Outer(model.parameters(), torch.optim.AdamW, lr=0.1, weight_decay=OWN)
    spec = "weight_decay(0.5, where='all', existing='replace')"
    session = regplug.attach(model, outer.base_optimizer, [spec])
    backward(model)
    outer.step()
    assert through_a_file(outer.state_dict(), weights_only=True)["param_groups"][0][
        "weight_decay"
    ] == pytest.approx(OWN, abs=0)
    session.detach()
    assert outer.param_groups[0]["weight_decay"] == OWN


@pytest.mark.parametrize("own", [1, 0, 0.25])
def test_the_value_is_given_back_as_it_was(own: float) -> None:
    model = tanh_net(4, 8, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=own)
    with regplug.attach(model, optimizer, ["weight_decay(0.5, where='all', existing='replace')"]):
        steps(model, optimizer, 1)
        saved = optimizer.state_dict()["param_groups"][0]["weight_decay"]
        assert (saved, type(saved)) == (own, type(own))
    left = optimizer.param_groups[0]["weight_decay"]
    assert (left, type(left)) == (own, type(own))


def test_groups_that_are_taken_away_get_their_own_decay_back_too() -> None:
    model = tanh_net(4, 8, 3)
    optimizer = torch.optim.AdamW(
        [
            {"params": model[0].parameters(), "weight_decay": 0.1},
            {"params": model[2].parameters(), "weight_decay": 0.2},
        ]
    )
    session = regplug.attach(model, optimizer, ["weight_decay(0.5, existing='replace')"])
    gone = optimizer.param_groups.pop(0)
    session.detach()
    assert (gone["weight_decay"], optimizer.param_groups[0]["weight_decay"]) == (0.1, 0.2)


@pytest.mark.parametrize("settings", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_every_kind_of_update_takes_what_is_lent(settings: dict[str, bool]) -> None:
    model, written = tanh_net(4, 8, 3), tanh_net(4, 8, 3)
    ours = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=OWN, **settings)
    theirs = torch.optim.AdamW(written.parameters(), lr=0.1, weight_decay=0.5, **settings)
    regplug.attach(model, ours, ["weight_decay(0.5, where='all', existing='replace')"])
    steps(model, ours, 3)
    steps(written, theirs, 3)
    for a, b in zip(model.parameters(), written.parameters(), strict=True):
        assert torch.equal(a, b)
