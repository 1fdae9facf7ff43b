"""What delivery='auto' becomes: the loss, where gradients came through it, and else the step."""

import copy

import pytest
import torch

import regplug
from regplug.errors import RegplugError
from tests.delivery.written_out import LR, Net, data, objective, spec


def train(model, optimizer, session=None, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = objective(model, *data())
        if session is not None:
            loss = session.loss(loss)
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("through", [True, False])
def test_auto_is_the_loss_if_gradients_came_through_it_and_else_the_step(through):
    models, descriptions = [], []
    for delivery in ("auto", "loss" if through else "step"):
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        session = regplug.attach(model, optimizer, [spec("l1", delivery)])
        assert f" {delivery} " in session.describe()
        train(model, optimizer, session if through else None, steps=3)
        models.append(model)
        descriptions.append(session.describe())
    for ours, theirs in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(ours, theirs)
    assert ("loss (auto)" if through else "step (auto)") in descriptions[0]


def test_auto_is_settled_once():
    model, written = Net(), Net()
    optimizers = [torch.optim.SGD(m.parameters(), lr=LR) for m in (model, written)]
    session = regplug.attach(model, optimizers[0], ["l1(0.3)"])
    regplug.attach(written, optimizers[1], ["l1(0.3, delivery='step')"])
    train(model, optimizers[0])
    train(model, optimizers[0], session)  # from now on it adds nothing to the loss
    train(written, optimizers[1], steps=2)
    for ours, theirs in zip(model.parameters(), written.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert "step (auto)" in session.describe()


def test_loss_that_is_only_looked_at_settles_nothing():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, ["l1(0.3)"])
    session.loss(objective(model, *data()))  # for a log, say
    with torch.no_grad():
        session.loss(objective(model, *data()))
    train(model, optimizer)
    assert "step (auto)" in session.describe()


def test_where_nothing_is_added_the_loss_itself_comes_back_and_nothing_is_left_on_it():
    """At strength 0: its backward pass is one through the loss event, but no later one is."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, ["l1(0)"])
    loss = objective(model, *data())
    assert session.loss(loss) is loss
    assert not session.gradients_through_loss
    loss.backward(retain_graph=True)
    assert session.gradients_through_loss
    assert not loss._backward_hooks


def test_auto_settles_by_the_loop_also_where_the_strength_starts_at_zero():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, ["l1(linear(0, 1, steps=2))"])
    train(model, optimizer, session, steps=2)
    assert "loss (auto)" in session.describe()
    session.detach()
    session = regplug.attach(model, optimizer, session.plugins)
    train(model, optimizer, steps=1)
    assert "step (auto)" in session.describe()


def test_penalty_pinned_to_the_loss_whose_loop_never_calls_it_is_an_error():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, ["l1(0.3, delivery='loss')"])
    before = copy.deepcopy(model.state_dict())
    message = r"l1 \(regplug .* at step 0.*`loss = session.loss\(loss\)` before.*delivery='step'"
    with pytest.raises(RegplugError, match=message):
        train(model, optimizer)
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())
    train(model, optimizer, session)
    assert session.steps == 1
