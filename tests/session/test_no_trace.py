"""After detach() nothing is left behind, and where attach() fails neither."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import regplug
from regplug import hookimpl
from regplug.errors import (
    PluginError,
)
from regplug_builtins import L1, L2, Dropout, ElasticNet, WeightDecay
from tests.helpers.compare import same
from tests.session.small_loop import EVERYTHING, hooks_of, network, train


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_loop_after_detach_is_bit_identical_to_one_that_never_attached(kind):
    plain, attached = network(), network()
    ours, theirs = kind(attached.parameters(), lr=0.05), kind(plain.parameters(), lr=0.05)
    session = regplug.attach(attached, ours, EVERYTHING)
    assert attached[2].p == 0.9
    session.detach()
    train(plain, theirs, 4)
    train(attached, ours, 4)
    assert same(attached.state_dict(), plain.state_dict())
    assert same(ours.state_dict(), theirs.state_dict())
    assert hooks_of(ours, attached) == []
    assert attached[2].p == 0.3


def test_strengths_of_zero_are_bit_identical_to_no_plugins():
    plain, attached = network(), network()
    ours, theirs = (torch.optim.Adam(m.parameters(), lr=0.05) for m in (attached, plain))
    zeros = [
        "l1(0)",
        "l2(0, delivery='loss')",
        "elastic_net(0, 0, delivery='proximal')",
        "weight_decay(0)",
        "dropout(1, relative=True)",
    ]
    session = regplug.attach(attached, ours, zeros)
    train(plain, theirs, 4)
    train(attached, ours, 4, session)
    assert same(attached.state_dict(), plain.state_dict())
    assert same(ours.state_dict(), theirs.state_dict())


def test_everything_is_restored_in_the_middle_of_training():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.03)
    with regplug.attach(model, optimizer, EVERYTHING) as session:
        train(model, optimizer, 3, session)
        assert session.steps == 3
        assert optimizer.param_groups[0]["weight_decay"] == 0
        assert model[2].p == pytest.approx(0.3, abs=1e-12)
    assert optimizer.param_groups[0]["weight_decay"] == 0.03
    assert model[2].p == 0.3
    assert hooks_of(optimizer, model) == []
    train(model, optimizer, 1)
    assert session.steps == 3


def test_detach_may_be_called_twice_and_the_session_then_changes_nothing():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["l1(0.1)", "dropout(0.5)"])
    session.detach()
    model[2].p = 0.7
    session.detach()
    assert model[2].p == 0.7
    loss = torch.tensor(1.0)
    assert session.loss(loss) is loss
    assert "detached" in session.describe()
    assert "l1/value" in session.metrics()


def test_step_by_hand_after_detach_changes_nothing():
    model = nn.Linear(2, 1)
    session = regplug.attach(model, plugins=["l1(0.1)", "weight_decay(0.1)"])
    model(torch.ones(1, 2)).sum().backward()
    session.detach()
    gradient, weight = model.weight.grad.clone(), model.weight.detach().clone()
    with session.step():
        pass
    assert session.steps == 0
    assert torch.equal(model.weight.grad, gradient)
    assert torch.equal(model.weight, weight)


class Broken(regplug.Plugin):
    """Fails at attach, in the middle of changing things."""

    @hookimpl
    def on_attach(self, session):
        session.model.marked = True
        raise OSError("no such file")

    @hookimpl
    def on_detach(self, session):
        del session.model.marked


def test_attach_that_fails_leaves_no_hook_and_no_change():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    mine = [WeightDecay(0.1, existing="replace"), Dropout(0.5), L1(0.1)]
    with pytest.raises(PluginError, match="no such file"):
        regplug.attach(model, optimizer, [*mine, Broken()])
    assert hooks_of(optimizer, model) == []
    assert same((model.state_dict(), optimizer.state_dict()), before)
    assert model[2].p == 0.3
    assert not hasattr(model, "marked")
    train(model, optimizer, 1)
    # The instances are free for another try.
    with regplug.attach(model, optimizer, mine):
        assert model[2].p == 0.5


def test_attach_that_fails_reports_its_own_failure_first():
    class Worse(Broken):
        @hookimpl
        def on_detach(self, session):
            raise OSError("cannot restore either")

    with pytest.raises(PluginError, match=r"worse .*on_attach.*no such file"):
        regplug.attach(network(), plugins=[Worse()])


def test_every_plugin_restores_also_when_one_fails_to():
    class Stubborn(regplug.Plugin):
        @hookimpl
        def on_detach(self, session):
            raise OSError("jammed")

    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    session = regplug.attach(
        model, optimizer, ["dropout(0.5)", Stubborn(), "weight_decay(0.1, existing='replace')"]
    )
    with pytest.raises(PluginError, match=r"stubborn .*on_detach.*jammed"):
        session.detach()
    assert model[2].p == 0.3
    assert optimizer.param_groups[0]["weight_decay"] == 0.01
    assert hooks_of(optimizer, model) == []


@pytest.mark.parametrize("trained", [False, True])
def test_model_is_freed_after_detach_without_a_garbage_collection(trained):
    """No cycle through hooks, graphs or plugins keeps it: also when the plugins live on."""
    plugins = [
        L1(0.1),
        L2(0.1, delivery="loss"),
        ElasticNet(0.1, 0.1, delivery="proximal"),
        WeightDecay(0.1, existing="replace"),
        Dropout(0.5),
    ]
    gc.collect()
    gc.disable()
    try:
        model = network()
        optimizer = torch.optim.AdamW(model.parameters())
        session = regplug.attach(model, optimizer, plugins)
        if trained:
            train(model, optimizer, 2, session)
            session.metrics()
            session.describe()
            session.load_state_dict(session.state_dict())
        session.detach()
        witness, of_weight = weakref.ref(model), weakref.ref(model[0].weight)
        del model, optimizer, session
        assert witness() is None
        assert of_weight() is None
    finally:
        gc.enable()
