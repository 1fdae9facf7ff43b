"""What a session tells once it is detached, and detaching from inside any event."""

import copy

import pytest
import torch
from torch import nn

import regplug
from regplug import hookimpl
from regplug.errors import StateError
from regplug.schedules import linear
from regplug_builtins import L1, L2SP, Dropout
from tests.helpers.compare import same

F64 = torch.float64


def rig(plugins, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.4), nn.Dropout(0.2)).to(F64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, regplug.attach(model, optimizer, plugins, **options)


def step(model, optimizer, session=None, count=1):
    for _ in range(count):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3, dtype=F64)).square().sum()
        (loss if session is None else session.loss(loss)).backward()
        optimizer.step()


# What it tells


class Forgets(regplug.Plugin):
    """Remembers in containers, tensors and an object, and clears it all when it leaves."""

    class Box:
        def __init__(self):
            self.seen = 0

    @hookimpl
    def on_attach(self, session):
        self.table, self.row, self.sums, self.box = {}, [], torch.zeros(2), Forgets.Box()

    @hookimpl
    def after_step(self, session):
        self.table[f"step {session.steps}"] = session.steps
        self.row.append(session.steps)
        self.sums += 1
        self.box.seen += 1

    @hookimpl
    def on_state(self):
        return {"table": self.table, "row": self.row, "sums": self.sums, "seen": self.box.seen}

    @hookimpl
    def on_metrics(self):
        return {"seen": self.box.seen, "sum": self.sums.sum()}

    def notes(self, session):
        return [f"saw {self.row}"]

    @hookimpl
    def on_detach(self, session):
        self.table.clear()
        self.row = None
        self.sums.zero_()
        del self.box.seen


def test_state_after_detach_is_that_of_the_moment_of_detaching():
    model, optimizer, session = rig([L2SP(0.5), Forgets(), L1(linear(0, 1, steps=10))])
    anchor = model[0].weight.detach().clone()
    step(model, optimizer, count=3)
    before = copy.deepcopy(session.state_dict())
    session.detach()
    step(model, optimizer, count=2)
    after = session.state_dict()
    assert after["steps"] == 3
    assert torch.equal(after["plugins"]["l2_sp"]["anchors"]["0.weight"], anchor)
    assert not torch.equal(model[0].weight, anchor)
    assert same(after, before)
    assert after["plugins"]["forgets"]["row"] == [0, 1, 2]
    # The saved state takes up the run where it stopped.
    model, optimizer, resumed = rig([L2SP(0.5), Dropout(0.1)], name="again")
    resumed.load_state_dict(
        {"steps": 3, "plugins": {"l2_sp": after["plugins"]["l2_sp"], "dropout": {}}}
    )
    assert torch.equal(resumed.state_dict()["plugins"]["l2_sp"]["anchors"]["0.weight"], anchor)


def test_metrics_and_describe_after_detach_tell_how_things_were():
    plugins = [
        L2SP(0.5),
        Dropout(linear(1.0, 0.5, steps=4), relative=True),
        "weight_decay(0.1)",
        Forgets(),
    ]
    model, optimizer, session = rig(plugins)
    step(model, optimizer, count=2)
    metrics, described = session.metrics(), session.describe()
    session.detach()
    assert session.metrics() == metrics
    assert metrics["dropout/rate"] == pytest.approx(0.75 * 0.3)
    assert metrics["l2_sp/value"] > 0
    assert session.describe().replace(", detached", "") == described
    assert "2 dropout rates" in described
    assert "saw [0, 1]" in described


def test_an_instance_that_is_attached_again_does_not_change_what_the_first_session_tells():
    anchored, watched = L2SP(0.5), Forgets()
    model, optimizer, first = rig([anchored, watched], name="first")
    step(model, optimizer, count=2)
    before, metrics = copy.deepcopy(first.state_dict()), first.metrics()
    first.detach()
    other = nn.Linear(3, 2).to(F64)
    second_optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with regplug.attach(other, second_optimizer, [anchored, watched], name="second") as second:
        step(other, second_optimizer)
        assert same(first.state_dict(), before)
        assert first.metrics().keys() == metrics.keys()
        assert first.metrics()["forgets/seen"] == 2
        assert second.metrics()["forgets/seen"] == 1


def test_loading_into_a_detached_session_is_refused():
    _, _, session = rig(["l1(0.1)"])
    state = session.state_dict()
    session.detach()
    with pytest.raises(StateError, match="detached: attach again"):
        session.load_state_dict({**state, "steps": 7})
    assert session.steps == 0


# Detaching from inside


class Leaves(regplug.Plugin):
    """Detaches its session in one event, the second time that this fires."""

    def __init__(self, event, name="leaves"):
        self.event, self.name, self.seen = event, name, 0

    def _saw(self, event, session):
        self.seen += event == self.event
        if event == self.event and self.seen == 2:
            session.detach()

    @hookimpl
    def on_loss(self, session):
        self._saw("on_loss", session)

    @hookimpl
    def on_gradients(self, session):
        self._saw("on_gradients", session)

    @hookimpl
    def on_closure(self, session):
        self._saw("on_closure", session)

    @hookimpl
    def before_step(self, session):
        self._saw("before_step", session)

    @hookimpl
    def after_step(self, session):
        self._saw("after_step", session)

    @hookimpl
    def on_metrics(self, session):
        self._saw("on_metrics", session)

    @hookimpl
    def on_detach(self, session):
        session.detach()  # of no effect, and no recursion without end


class Later(regplug.Plugin):
    """Says what it is called for once its session is detached."""

    def __init__(self, bare):
        self.called, self.name = [], "bare" if bare else "later"

    @hookimpl
    def on_gradients(self):
        self.called.append("on_gradients")

    @hookimpl
    def before_step(self):
        self.called.append("before_step")

    @hookimpl
    def after_step(self):
        self.called.append("after_step")

    @hookimpl
    def on_detach(self, session):
        self.called.clear()


EVENTS = ["on_loss", "on_gradients", "on_closure", "before_step", "after_step"]


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("event", EVENTS)
def test_a_plugin_may_detach_its_session_in_any_event(event, closure, others):
    """Also with hooks of others around ours, which torch is going through just then."""
    if event == "on_closure" and not closure:
        pytest.skip("fires with a closure alone")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.4)).to(F64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.03)
    later = Later(bare=True)
    plugins = [
        Leaves(event),
        later,
        "weight_decay(0.2, existing='replace')",
        "dropout(0.1)",
        "l1(0.1)",
    ]
    session = regplug.attach(model, optimizer, plugins)
    after = session.after_each_step(lambda session: None)
    seen = []
    if others:
        optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
        optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    x = torch.ones(2, 3, dtype=F64)

    def evaluate():
        optimizer.zero_grad()
        loss = session.loss(model(x).square().sum())
        loss.backward()
        return loss

    for _ in range(3):
        if closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()
    after()
    assert "detached" in session.describe()
    assert later.called == []
    assert optimizer.param_groups[0]["weight_decay"] == 0.03
    assert (model[1].p, type(model[1].p)) == (0.4, float)
    assert len(optimizer._optimizer_step_pre_hooks) == len(optimizer._optimizer_step_post_hooks)
    assert len(optimizer._optimizer_step_pre_hooks) == others
    assert seen == ["pre", "post"] * 3 * others
    assert session.steps == (2 if event == "after_step" else 1)


def test_a_callback_after_the_step_may_detach_and_those_behind_it_are_not_called():
    model, optimizer, session = rig(["dropout(0.1)"])
    seen = []
    session.after_each_step(lambda session: seen.append(session.steps))
    session.after_each_step(lambda session: session.steps == 2 and session.detach())
    session.after_each_step(lambda session: seen.append(-session.steps))
    step(model, optimizer, count=4)
    assert seen == [1, -1, 2]
    assert session.steps == 2
    assert model[1].p == 0.4


def test_detaching_within_a_step_by_hand_and_within_metrics():
    model = nn.Linear(2, 1)
    session = regplug.attach(model, plugins=[Leaves("on_gradients"), "l2(0.5)"])
    model(torch.ones(1, 2)).sum().backward()
    for _ in range(2):
        gradient = model.weight.grad.clone()
        with session.step(lr=0.1):
            pass
    assert torch.equal(model.weight.grad, gradient)
    assert session.steps == 1
    session = regplug.attach(model, plugins=[Leaves("on_metrics"), "l2(0.5)"])
    first = session.metrics()
    assert session.metrics() == first


# The loss itself, and figures under a name


def test_loss_to_which_nothing_is_added_is_the_very_same():
    model, optimizer, session = rig(["l1(0)", "l2(0.1, delivery='step')", "dropout(0.1)"])
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3, dtype=F64)).sum()
        assert session.loss(loss) is loss
        assert session.loss(loss) is loss
        loss.backward(retain_graph=True)
        loss.backward()
        optimizer.step()
    assert session.gradients_through_loss
    leaf = torch.ones((), requires_grad=True)
    assert session.loss(leaf) is leaf


def test_auto_delivery_from_strength_zero_still_sees_that_gradients_come_through_the_loss():
    model, optimizer, session = rig([L1(linear(0, 1, steps=2))])
    step(model, optimizer, session, count=2)
    assert "loss (auto)" in session.describe()


def test_figures_of_a_named_session_are_found_by_either_name():
    session = regplug.attach(nn.Linear(2, 2), plugins=["l1(0.1)"], name="critic")
    metrics = session.metrics()
    assert "l1/strength" in metrics
    assert "critic/l1/strength" in metrics
    assert "l2/strength" not in metrics
    assert 3 not in metrics
    assert metrics.get("l1/strength") == metrics.get("critic/l1/strength") == 0.1
    assert metrics.get("l2/strength") is None
    assert metrics.get("l2/strength", 7.0) == 7.0
    assert sorted(metrics) == ["critic/l1/strength", "critic/l1/value", "critic/l1/zeros"]
