"""Attached twice, as where a notebook's cell is run again: told, and undone in any order."""

import copy
import gc
import itertools
import re
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import SpecError
from tests.helpers.loops import zero_step

TWICE = r"session 'regplug', which is attached to this {} already \(\d+ steps\), has {} too"


class Path(nn.Module):
    """Stochastic depth, by the name and the attribute that libraries give it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop_prob = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class DropPath(Path):
    pass


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.3), DropPath(0.2), nn.Linear(4, 2)
    )


def sgd(model: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **settings})


SPECS = [
    "l1(0.1)",
    "l2(0.1, delivery='step')",
    "elastic_net(0.1, 0.1)",
    "group_lasso(0.1, delivery='proximal')",
    "l2_sp(0.1)",
    "weight_decay(0.1)",
    "gradient_noise(0.1)",
    "max_norm(1.0)",
    "dropout(0.5)",
    "drop_path(0.5)",
    "activity(0.1)",
]


@pytest.mark.parametrize("spec", SPECS)
def test_the_same_plugin_again_is_told_with_the_session_and_a_line_that_replaces_it(
    spec: str,
) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = sgd(model)
    regplug.attach(model, optimizer, [spec])
    message = TWICE.format("SGD", spec.partition("(")[0])
    with pytest.warns(UserWarning, match=message) as told:
        session = regplug.attach(model, optimizer, [spec])
    assert len(told) == 1
    assert told[0].filename == __file__
    # The first one's name is lost, and the line that is told takes it off all the same.
    (line,) = re.findall("`(for .*)` before attach", str(told[0].message))
    exec(line, {"regplug": regplug, "optimizer": optimizer})
    assert "detached" in session.describe()
    assert regplug.sessions.on(optimizer) == ()
    session = regplug.attach(model, optimizer, [spec])  # a warning would be an error here
    assert regplug.sessions.on(optimizer) == (session,)
    session.detach()
    assert (model[2].p, model[3].drop_prob) == (0.3, 0.2)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_cell_that_begins_with_the_line_may_be_run_again_and_again() -> None:
    model = network()
    optimizer = sgd(model)
    cell = """
for old in regplug.sessions.on(optimizer): old.detach()
session = regplug.attach(model, optimizer, ["l2(0.5)", "dropout(linear(0.5, 0.1, steps=9))"])
"""
    space = {"regplug": regplug, "optimizer": optimizer, "model": model}
    for _ in range(3):
        exec(cell, space)
    before = model[0].weight.detach().clone()
    zero_step(model, optimizer)
    torch.testing.assert_close(model[0].weight.detach(), before * (1 - 0.1))


def test_a_class_that_the_cell_defines_anew_is_the_same_plugin() -> None:
    model = network()
    optimizer = sgd(model)

    def cell() -> regplug.Session:
        class Mine(regplug.Penalty):
            def value(self, w: torch.Tensor) -> torch.Tensor:
                return w.square().sum()

        return regplug.attach(model, optimizer, [Mine(0.1)])

    cell()
    with pytest.warns(UserWarning, match=TWICE.format("SGD", "mine")):
        cell()


class Bare(regplug.Plugin):
    """Says nothing of what it acts on."""

    @regplug.hookimpl
    def on_gradients(self, session: regplug.Session) -> None:
        pass


def test_a_plugin_that_does_not_say_what_it_covers_is_known_by_its_name() -> None:
    model = network()
    optimizer = sgd(model)
    regplug.attach(model, optimizer, [Bare()])
    other = Bare()
    other.name = "other"
    regplug.attach(model, optimizer, [other])
    with pytest.warns(UserWarning, match=TWICE.format("SGD", "bare")):
        regplug.attach(model, optimizer, [Bare()])


def test_all_that_double_are_told_and_no_others() -> None:
    model = network()
    optimizer = sgd(model)
    regplug.attach(model, optimizer, ["l2(0.1)", "weight_decay(0.1)", "l1(0.1, where='0.*')"])
    with pytest.warns(UserWarning, match=TWICE.format("SGD", "again, weight_decay")):
        regplug.attach(
            model, optimizer, ["l2(1, name='again')", "l1(0.1, where='4.*')", "weight_decay(0.2)"]
        )


def test_what_does_not_double_is_not_told() -> None:
    """Catches a warning, which would be an error here."""
    model = network()
    optimizer = sgd(model)
    regplug.attach(model, optimizer, ["l2(0.1)", "dropout(0.4)"])
    # Another plugin, other weights, another name of the session, another optimizer.
    regplug.attach(model, optimizer, ["l1(0.1)"])
    regplug.attach(model, optimizer, ["l2(0.1)"], name="second")
    with regplug.attach(model, sgd(model), ["l2(0.1)"]):
        pass
    other = network()
    regplug.attach(other, sgd(other), ["l2(0.1)", "dropout(0.4)"])
    halves = [torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 4)]
    for half in halves:
        regplug.attach(model, half, ["l2(0.1)"])
    regplug.attach(model[4], optimizer, ["gradient_noise(0.1)"])


def test_parts_of_one_model_on_one_optimizer_are_told_only_where_they_meet() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = sgd(model)
    regplug.attach(model[0], optimizer, ["l2(0.1)"])
    regplug.attach(model[1], optimizer, ["l2(0.1)"])  # both are called "weight" there
    with pytest.warns(UserWarning, match=TWICE.format("SGD", "l2")):
        regplug.attach(model, optimizer, ["l2(0.1, where='1.*')"])


def test_a_session_that_ended_or_failed_is_not_told() -> None:
    model = network()
    optimizer = sgd(model)
    with regplug.attach(model, optimizer, ["l2(0.1)"]):
        pass
    with pytest.raises(SpecError):
        regplug.attach(model, sgd(model, weight_decay=0.1), ["l2(0.1)", "weight_decay(0.1)"])
    with pytest.raises(SpecError):
        regplug.attach(model, optimizer, ["l2(0.1)", "l2(0.2)"])
    assert regplug.sessions.on(optimizer) == ()
    assert regplug.sessions.on(model) == ()
    regplug.attach(model, optimizer, ["l2(0.1)"])


def test_the_warning_as_an_error_leaves_nothing_attached_but_the_first() -> None:
    model = network()
    optimizer = sgd(model)
    first = regplug.attach(model, optimizer, ["dropout(0.5)", "l2(0.5)"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="dropout, l2 too"):
            regplug.attach(model, optimizer, ["dropout(0.9)", "l2(0.5)"])
    assert regplug.sessions.on(optimizer) == (first,)
    assert model[2].p == 0.5
    before = model[0].weight.detach().clone()
    zero_step(model, optimizer)
    torch.testing.assert_close(model[0].weight.detach(), before * (1 - 0.1))


def test_modules_are_told_by_the_model_where_the_cell_makes_a_new_optimizer() -> None:
    model = network()
    old = sgd(model)
    regplug.attach(model, old, ["activity(0.1)", "l2(0.1)"])
    kept = regplug.sessions.on(model)
    with pytest.warns(UserWarning, match=TWICE.format("Sequential", "activity")) as told:
        regplug.attach(model, sgd(model), ["activity(0.1)", "l2(0.1)"])
    assert "regplug.sessions.on(model)" in str(told[0].message)
    assert regplug.sessions.on(model)[: len(kept)] == kept


def test_a_moving_rate_of_another_session_is_refused_with_the_line_that_takes_it_off() -> None:
    model = network()
    old = sgd(model)  # which a notebook's last output, say, keeps alive
    regplug.attach(model, old, ["dropout(linear(0.5, 0.1, steps=9))"])
    with pytest.raises(SpecError, match="moved by session 'regplug' already") as refused:
        regplug.attach(model, sgd(model), ["dropout(linear(0.5, 0.1, steps=9))"])
    (line,) = re.findall("`(for .*)`", str(refused.value))
    exec(line, {"regplug": regplug, "model": model})
    assert model[2].p == 0.3
    regplug.attach(model, sgd(model), ["dropout(linear(0.5, 0.1, steps=9))"])


def test_sessions_are_found_behind_accelerates_wrapper() -> None:
    from accelerate import Accelerator

    model = network()
    model, optimizer = Accelerator(cpu=True).prepare(model, sgd(model))
    session = regplug.attach(model, optimizer, ["l2(0.1)"])
    assert regplug.sessions.on(optimizer) == (session,)
    session.detach()


def test_living_sessions_keep_nothing_alive() -> None:
    model = network()
    optimizer = sgd(model)
    session = regplug.attach(model, optimizer, ["l2(0.1)", "dropout(linear(0.5, 0, steps=3))"])
    watched = [weakref.ref(thing) for thing in (model, optimizer, session)]
    del model, optimizer, session
    gc.collect()
    assert [r() for r in watched] == [None, None, None]


def test_a_moving_rate_that_a_dead_session_left_behind_is_replaced() -> None:
    model = network()
    regplug.attach(model, plugins=["dropout(linear(0.5, 0.1, steps=9))"])
    gc.collect()
    with regplug.attach(model, plugins=["dropout(linear(0.8, 0.1, steps=9))"]):
        assert float(model[2].p) == 0.8
    assert model[2].p == 0.3


# Undone in any order


RATES = [("dropout", 2, "p", 0.3), ("drop_path", 3, "drop_prob", 0.2)]


@pytest.mark.parametrize(("plugin", "index", "attribute", "own"), RATES)
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("second", ["0.9", "linear(0.9, 0.1, steps=4)"])
def test_rates_are_the_users_again_whoever_detaches_first(
    plugin: str, index: int, attribute: str, own: float, first: int, second: str
) -> None:
    model = network()
    optimizer = sgd(model)
    sessions = [
        regplug.attach(model, optimizer, [f"{plugin}({rate})"], name=name)
        for name, rate in (("one", "0.5"), ("two", second))
    ]
    assert float(getattr(model[index], attribute)) == 0.9
    assert f"own {own:g}" in sessions[1].describe()
    sessions[first].detach()
    assert float(getattr(model[index], attribute)) == (0.9, 0.5)[first]
    sessions[1 - first].detach()
    assert getattr(model[index], attribute) == own
    assert type(getattr(model[index], attribute)) is float


def test_three_sessions_give_back_in_every_order() -> None:
    for order in itertools.permutations(range(3)):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.25)
        sessions = [
            regplug.attach(
                model,
                optimizer,
                [f"dropout({rate})", f"weight_decay({rate}, existing='replace')", "activity(0.1)"],
                name=str(rate),
            )
            for rate in (0.5, 0.6, 0.7)
        ]
        loss = model(torch.ones(2, 3)).sum()
        for session in sessions:
            loss = session.loss(loss)
        loss.backward()
        optimizer.step()
        for i in order:
            assert optimizer.param_groups[0]["weight_decay"] == 0.0
            sessions[i].detach()
        assert model[2].p == 0.3
        assert optimizer.param_groups[0]["weight_decay"] == 0.25
        assert not model[1]._forward_hooks


def test_relative_rates_are_of_the_users_own() -> None:
    model = network()
    optimizer = sgd(model)
    regplug.attach(model, optimizer, ["dropout(0.9)"])
    with regplug.attach(model, optimizer, ["dropout(0.5, relative=True)"], name="half"):
        assert model[2].p == pytest.approx(0.15)
    assert model[2].p == 0.9


def test_a_rate_that_the_user_sets_between_two_sessions_is_the_users_own() -> None:
    model = network()
    optimizer = sgd(model)
    one = regplug.attach(model, optimizer, ["dropout(0.9)"], name="one")
    model[2].p = 0.4
    two = regplug.attach(model, optimizer, ["dropout(0.8)"], name="two")
    one.detach()
    assert model[2].p == 0.8
    two.detach()
    assert model[2].p == 0.4
