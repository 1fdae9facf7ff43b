"""Each delivery against gradients and updates written out."""

import math

import pytest
import torch
from torch import nn

import regplug
from regplug.backend.blocks import BLOCK
from regplug.schedules import linear
from regplug_builtins import L1, L2, ElasticNet
from tests.delivery.written_out import (
    LR,
    PENALTIES,
    Net,
    data,
    gradient,
    objective,
    proximal,
    spec,
    value,
    weights_of,
)
from tests.helpers.compare import close


@pytest.fixture
def reference():
    """Return a copy of the model, its gradients of the data loss alone, and its weights."""
    model = Net()
    objective(model, *data()).backward()
    return model


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("delivery", ["step", "loss", "proximal"])
@pytest.mark.parametrize("maximize", [False, True])
def test_one_step_is_what_is_written_out(reference, name, delivery, maximize):
    """Under maximize=True the penalties still shrink the weights."""
    _, l1, l2 = PENALTIES[name]
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, maximize=maximize)
    session = regplug.attach(model, optimizer, [spec(name, delivery)])
    sign = -1 if maximize else 1
    session.loss(sign * objective(model, *data())).backward()
    optimizer.step()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        w, g = theirs.detach(), theirs.grad
        if w.ndim == 1:  # a bias
            expected = w - LR * g
        elif delivery == "proximal":
            expected = proximal(w - LR * g, LR, l1, l2)
        else:
            expected = w - LR * (g + gradient(w, l1, l2))
        close(ours.detach(), expected)


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("maximize", [False, True])
def test_gradient_in_the_loss_is_what_is_written_out(reference, name, maximize):
    _, l1, l2 = PENALTIES[name]
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, maximize=maximize)
    session = regplug.attach(model, optimizer, [spec(name, "loss")])
    loss = objective(model, *data())
    total = session.loss(loss)
    sign = -1 if maximize else 1
    terms = sum(value(w, l1, l2) for w in weights_of(reference))
    close(total.detach(), loss.detach() + sign * terms.detach())
    total.backward()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        added = gradient(theirs.detach(), l1, l2) if theirs.ndim == 2 else 0
        close(ours.grad, theirs.grad + sign * added)


@pytest.mark.parametrize("name", PENALTIES)
def test_gradient_in_the_loss_is_that_of_autograd(name):
    _, l1, l2 = PENALTIES[name]
    model, written = Net(), Net()
    session = regplug.attach(model, plugins=[spec(name, "loss")])
    session.loss(objective(model, *data())).backward()
    (objective(written, *data()) + sum(value(w, l1, l2) for w in weights_of(written))).backward()
    for ours, theirs in zip(model.parameters(), written.parameters(), strict=True):
        close(ours.grad, theirs.grad)


@pytest.mark.parametrize("delivery", ["step", "loss", "proximal"])
def test_several_penalties_add_up(reference, delivery):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    specs = [f"l1(0.3, delivery='{delivery}')", f"l2(0.2, where='first.*', delivery='{delivery}')"]
    session = regplug.attach(model, optimizer, specs)
    session.loss(objective(model, *data())).backward()
    optimizer.step()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        w, g = theirs.detach(), theirs.grad
        l1, l2 = 0.3 * (w.ndim == 2), 0.2 * name.startswith("first")
        if delivery == "proximal":  # one after the other, in the order of the list
            expected = proximal(proximal(w - LR * g, LR, l1, 0), LR, 0, l2)
        else:
            expected = w - LR * (g + gradient(w, l1, l2))
        close(ours.detach(), expected)


@pytest.mark.parametrize("delivery", ["step", "loss", "proximal"])
def test_scheduled_strengths_are_those_of_each_step(delivery):
    model, written = Net(), Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    schedule = linear(0.4, 0.1, steps=3)
    session = regplug.attach(model, optimizer, [ElasticNet(schedule, 0.2, delivery=delivery)])
    for step in range(5):
        optimizer.zero_grad()
        session.loss(objective(model, *data())).backward()
        optimizer.step()
        written.zero_grad()
        objective(written, *data()).backward()
        l1 = 0.4 + (0.1 - 0.4) * min(step / 3, 1)
        with torch.no_grad():
            for w in written.parameters():
                if w.ndim == 1:
                    w.sub_(LR * w.grad)
                elif delivery == "proximal":
                    w.copy_(proximal(w - LR * w.grad, LR, l1, 0.2))
                else:
                    w.sub_(LR * (w.grad + gradient(w, l1, 0.2)))
    for ours, theirs in zip(model.parameters(), written.parameters(), strict=True):
        close(ours.detach(), theirs.detach())


def test_weights_larger_than_a_block_and_of_any_layout():
    """Pieces are cut from flat weights, transposed ones and channels-last ones."""
    model = nn.ParameterList(
        [
            torch.randn(1300, 900, dtype=torch.float64),
            torch.randn(900, 1300, dtype=torch.float64).t(),
            torch.randn(3, 80, 70, 70, dtype=torch.float64).to(memory_format=torch.channels_last),
            torch.randn(5, 3, dtype=torch.float64),
        ]
    )
    assert sum(w.numel() > BLOCK for w in model) == 3
    before = [w.detach().clone() for w in model]
    for delivery in ("step", "loss", "proximal"):
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        with regplug.attach(model, optimizer, [spec("elastic_net", delivery)]) as session:
            if delivery == "loss":
                optimizer.zero_grad()
                session.loss(sum(w.sum() for w in model)).backward()
            else:  # gradients of a layout that is not their weights'
                for w in model:
                    w.grad = torch.ones(w.shape, dtype=w.dtype)
            optimizer.step()
        with torch.no_grad():
            for w, start in zip(model, before, strict=True):
                if delivery == "proximal":
                    expected = proximal(start - LR, LR, 0.3, 0.2)
                else:
                    expected = start - LR * (1 + gradient(start, 0.3, 0.2))
                close(w.detach(), expected)
                w.copy_(start)


def test_l2_is_sgds_own_weight_decay_of_twice_the_strength():
    """Several meanings of weight decay are alive; l2 has no ½ and is the coupled one."""
    model, written = Net(), Net()
    ours = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    theirs = torch.optim.SGD(written.parameters(), lr=LR, momentum=0.9, weight_decay=0.25)
    regplug.attach(model, ours, ["l2(0.125, where='all')"])
    for _ in range(5):
        for net, optimizer in ((model, ours), (written, theirs)):
            optimizer.zero_grad()
            objective(net, *data()).backward()
            optimizer.step()
    for mine, its in zip(model.parameters(), written.parameters(), strict=True):
        close(mine.detach(), its.detach())


# Strengths of zero


def test_strength_zero_is_as_good_as_absent_and_nan_weights_stay_the_loops_own():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    session = regplug.attach(model, plugins=["l1(0)", "l2(0)", "elastic_net(0, 0)"])
    assert session.loss(torch.tensor(1.0)).item() == 1.0


@pytest.mark.parametrize("kind", [L1, L2])
def test_twice_the_strength_is_twice_the_value(kind):
    model = Net()
    one = regplug.attach(model, plugins=[kind(0.25)]).metrics()
    two = regplug.attach(model, plugins=[kind(0.5)]).metrics()
    name = kind.__name__.lower()
    assert two[f"{name}/value"] == pytest.approx(2 * one[f"{name}/value"])


def test_elastic_net_of_one_strength_is_the_other_penalty():
    model = Net()
    for specs in (["elastic_net(0.3, 0)", "l1(0.3)"], ["elastic_net(0, 0.3)", "l2(0.3)"]):
        values = [
            regplug.attach(model, plugins=[s]).loss(torch.zeros((), dtype=torch.float64))
            for s in specs
        ]
        close(values[0].detach(), values[1].detach())
