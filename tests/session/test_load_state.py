"""Loading a state that fails changes nothing."""

import copy

import pytest
import torch
from torch import nn

import regplug
from regplug import hookimpl
from regplug.errors import PluginError, RegplugError, StateError
from regplug.schedules import linear
from regplug_builtins import L1, L2SP, Dropout
from tests.helpers.compare import same


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.4))


class Remembers(regplug.Plugin):
    """Its state lies in attributes of every kind, and in the model."""

    def __init__(self, name="remembers"):
        self.name = name
        self.number, self.table, self.row = 1, {"a": [1]}, [1, 2]
        self.tensor, self.shared = torch.tensor([1.0, 2.0]), {1}

    @hookimpl
    def on_attach(self, session):
        session.model.mark = self.number

    @hookimpl
    def on_state(self):
        state = {"number": self.number, "table": self.table, "row": self.row}
        return copy.deepcopy({**state, "tensor": self.tensor, "shared": sorted(self.shared)})

    @hookimpl
    def on_load_state(self, session, state):
        self.number = session.model.mark = state["number"]
        self.table["a"] += state["table"]["a"]
        self.table.update(state["table"])
        self.row[:] = state["row"]
        self.shared |= set(state["shared"])
        self.tensor.copy_(state["tensor"])
        if state.get("fails"):
            raise state["fails"]


OTHER = {
    "number": 2,
    "table": {"b": 3, "a": [9]},
    "row": [7],
    "tensor": torch.tensor([5.0, 6.0]),
    "shared": [2],
}


def attached(*plugins):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(
        model,
        optimizer,
        [L1(linear(0, 1, steps=10)), Dropout(linear(0, 1, steps=10)), L2SP(0.1), *plugins],
    )
    for _ in range(2):
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    return model, session


def told(model, session):
    return copy.deepcopy(
        (session.state_dict(), session.metrics(), float(model[1].p), getattr(model, "mark", None))
    )


def anchors(session):
    return {"anchors": {"0.weight": torch.ones_like(session.model[0].weight)}}


@pytest.mark.parametrize("error", [OSError("no such file"), KeyError("x"), KeyboardInterrupt()])
@pytest.mark.parametrize("order", [1, -1])
def test_a_plugin_that_raises_half_way_takes_everything_back(error, order):
    plugins = [Remembers("first"), Remembers("second"), Remembers("third")][::order]
    model, session = attached(*plugins)
    before = told(model, session)
    tensor, row = plugins[0].tensor, plugins[0].row
    states = {
        "l1": {},
        "dropout": {},
        "l2_sp": anchors(session),
        "first": OTHER,
        "second": {**OTHER, "fails": error},
        "third": OTHER,
    }
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else PluginError):
        session.load_state_dict({"steps": 7, "plugins": states})
    assert same(told(model, session), before)
    assert float(model[1].p) == pytest.approx(0.2)
    assert plugins[0].tensor is tensor
    assert plugins[0].row is row
    del states["second"]["fails"]
    session.load_state_dict({"steps": 7, "plugins": states})
    assert session.steps == 7
    assert float(model[1].p) == pytest.approx(0.7)
    assert all(p.number == 2 for p in plugins)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"anchors": {"0.weight": torch.ones(5)}}, "of the same shapes"),
        ({"anchors": {"1.weight": torch.ones(2, 3)}}, "of 1.weight"),
        ({"anchors": {}}, "of nothing"),
        ({}, "of nothing"),
        ({"anchors": {3: torch.ones(2, 3), "0.weight": torch.ones(2, 3)}}, "of 3, 0.weight"),
        ({"anchors": [torch.ones(2, 3)]}, "no tensors by parameter name"),
        ({"anchors": {"0.weight": 3}}, "no tensors by parameter name"),
    ],
)
def test_wrong_anchors_change_nothing(wrong, message):
    model, session = attached()
    before = told(model, session)
    with pytest.raises(StateError, match=message):
        session.load_state_dict({"steps": 7, "plugins": {"l1": {}, "dropout": {}, "l2_sp": wrong}})
    assert same(told(model, session), before)


def test_rates_that_a_schedule_refuses_at_the_loaded_step_change_nothing():
    model = network()
    session = regplug.attach(model, plugins=[Dropout(lambda t: 0.1 if t < 5 else 1.5)])
    with pytest.raises(RegplugError, match=r"1\.5"):
        session.load_state_dict({"steps": 7, "plugins": {"dropout": {}}})
    assert session.steps == 0
    assert float(model[1].p) == 0.1
    assert session.metrics()["dropout/rate"] == 0.1


@pytest.mark.parametrize(
    "plugins",
    [
        {"l1": {}, 3: {}},
        {"l1": {}, None: {}, "l2": {}},
        {("l1",): {}, "x": {}},
        {"l2": {}},
        {"l1": 3},
        [],
    ],
)
def test_states_of_other_plugins_and_keys_of_any_type_are_refused(plugins):
    session = regplug.attach(network(), plugins=["l1(0.1)"])
    with pytest.raises(StateError, match=r"state is of the plugins|not what session\.state"):
        session.load_state_dict({"steps": 7, "plugins": plugins})
    assert session.steps == 0


@pytest.mark.parametrize("steps", [True, 2.0, "3", None, -1])
def test_steps_that_are_no_count_are_refused(steps):
    session = regplug.attach(network(), plugins=["l1(0.1)"])
    with pytest.raises(StateError, match=r"not what session\.state_dict"):
        session.load_state_dict({"steps": steps, "plugins": {"l1": {}}})
    assert session.steps == 0
