"""A session's state: through a file, into a run that goes on, and refused where it is another's."""

import copy

import pytest
import torch
from torch import nn

import regplug
from regplug import hookimpl
from regplug.errors import (
    StateError,
)
from tests.helpers.compare import same
from tests.helpers.loops import batches
from tests.session.small_loop import network, train


class Counter(regplug.Plugin):
    """Remembers a tensor, a string and a list over a restart."""

    changes_weights = False

    def __init__(self):
        self.seen = torch.zeros(2)

    @hookimpl
    def after_step(self, session):
        self.seen += 1

    @hookimpl
    def on_state(self):
        return {"seen": self.seen, "unit": "steps", "history": [1, {"a": None}]}

    @hookimpl
    def on_load_state(self, session, state):
        self.loaded_at = session.steps
        self.seen = state["seen"]
        assert state["history"] == [1, {"a": None}]


def test_state_survives_a_file_that_is_loaded_with_weights_only(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    specs = ["l1(linear(0, 1, steps=10))", "dropout(linear(0, 1, steps=10))"]
    session = regplug.attach(model, optimizer, [*specs, Counter()])
    train(model, optimizer, 3)
    torch.save(session.state_dict(), tmp_path / "session.pt")
    session.detach()
    state = torch.load(tmp_path / "session.pt", weights_only=True)

    model = network()
    resumed = regplug.attach(
        model, torch.optim.SGD(model.parameters(), lr=0.1), [*specs, Counter()]
    )
    resumed.load_state_dict(state)
    assert resumed.steps == 3
    assert resumed.metrics()["l1/strength"] == pytest.approx(0.3)
    assert model[2].p == pytest.approx(0.3)
    counter = resumed.plugins[2]
    assert torch.equal(counter.seen, torch.tensor([3.0, 3.0]))
    assert counter.loaded_at == 3


def test_resumed_training_goes_on_as_if_it_had_not_stopped():
    def run(stop_at):
        model = network().double()
        model[2].p = 0.0
        specs = ["l1(linear(0.1, 0.5, steps=6))", "weight_decay(cosine(0.1, 0.5, steps=6))"]
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        session = regplug.attach(model, optimizer, specs)
        for step, (x, y) in enumerate(batches(6)):
            if step == stop_at:
                saved = copy.deepcopy(
                    (model.state_dict(), optimizer.state_dict(), session.state_dict())
                )
                model = network().double()
                model[2].p = 0.0
                optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
                session = regplug.attach(model, optimizer, specs)
                for thing, state in zip((model, optimizer, session), saved, strict=True):
                    thing.load_state_dict(state)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x.double()), y.double()).backward()
            optimizer.step()
        return model.state_dict()

    assert same(run(stop_at=3), run(stop_at=None))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"steps": 1, "plugins": {"l2": {}}},
            r"of the plugins \['l2'\], this session has \['l1'\]",
        ),
        ({"steps": 1, "plugins": {}}, r"of the plugins none, this session has \['l1'\]"),
        ({"steps": -1, "plugins": {"l1": {}}}, "not what session.state_dict"),
        ({"steps": 1.5, "plugins": {"l1": {}}}, "not what session.state_dict"),
        ({"plugins": {"l1": {}}}, "not what session.state_dict"),
        ({"steps": 1}, "not what session.state_dict"),
        ({"steps": 1, "plugins": {"l1": 3}}, "not what session.state_dict"),
        ({}, "not what session.state_dict"),
        (None, "not what session.state_dict"),
        ([1, 2], "not what session.state_dict"),
    ],
)
def test_foreign_state_is_refused(state, message):
    session = regplug.attach(network(), plugins=["l1(0.1)"])
    with pytest.raises(StateError, match=message):
        session.load_state_dict(state)
    assert session.steps == 0
