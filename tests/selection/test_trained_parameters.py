"""Of what is selected, what is trained: not frozen, with a gradient, by this optimizer."""

import pytest
import torch
from torch import nn

import regplug
from regplug import Selection
from regplug.errors import SelectionError
from regplug_builtins import L1, L2
from tests.selection.named import train_once


def test_frozen_parameters_are_left_alone_until_they_thaw():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first, second = (layer.weight.detach().clone() for layer in model)
    session = regplug.attach(model, optimizer, ["l2(0.5)", "weight_decay(0.5)"])
    assert session.metrics()["l2/value"] == pytest.approx(0.5 * second.square().sum().item())
    assert session.plugins[0].covers(session) == (1, 4)
    train_once(model, optimizer)
    assert torch.equal(model[0].weight, first)
    torch.testing.assert_close(model[1].weight.detach(), second * (0.95 - 0.1))
    model[0].weight.requires_grad_(True)
    assert session.plugins[0].covers(session) == (2, 8)
    train_once(model, optimizer)
    torch.testing.assert_close(model[0].weight.detach(), first * (0.95 - 0.1))


@pytest.mark.parametrize("where", ["weights", "all", "*", "0.weight"])
def test_model_that_is_all_frozen_is_refused(where):
    model = nn.Sequential(nn.Linear(2, 2)).requires_grad_(False)
    with pytest.raises(SelectionError, match=r"no trainable parameter; . frozen ones match"):
        regplug.attach(model, plugins=[L1(0.1, where=where)])


@pytest.mark.parametrize("delivery", ["step", "proximal"])
def test_parameter_without_a_gradient_took_no_part_and_is_left_alone(delivery):
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    unused = model[1].weight.detach().clone()
    regplug.attach(model, optimizer, [L2(0.5, delivery=delivery), "weight_decay(0.5)"])
    for _ in range(2):
        optimizer.zero_grad()
        model[0](torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert torch.equal(model[1].weight, unused)
    assert model[1].weight.grad is None


def test_first_layer_acts_though_its_input_needs_no_gradient():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model[0].weight.detach().clone()
    session = regplug.attach(model, optimizer, ["l2(0.5)"])
    for _ in range(2):  # and not in the first batch alone
        train_once(model, optimizer, session)
    torch.testing.assert_close(model[0].weight.detach(), before * 0.9**2)


def test_gradient_is_added_to_and_not_replaced():
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.weight.detach().clone()
    regplug.attach(model, optimizer, ["l1(0.5)"])
    model(torch.tensor([[3.0, 7.0]])).sum().backward()
    kept = model.weight.grad
    optimizer.step()
    assert model.weight.grad is kept
    moved = before - torch.tensor([[3.0, 7.0]]) - 0.5 * before.sign()
    torch.testing.assert_close(model.weight.detach(), moved)


# This optimizer's own


def test_only_what_the_optimizer_updates_is_covered():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    optimizer = torch.optim.SGD(model["a"].parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["l1(0.1)"])
    assert [entry.name for entry in session.coverage(Selection())] == ["a.weight"]
    message = "selects b.weight, b.bias, none of which this optimizer updates: it has a.weight"
    with pytest.raises(SelectionError, match=message):
        regplug.attach(model, optimizer, [L1(0.1, where="b.*")])


def test_optimizer_of_another_model_is_refused():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(SelectionError, match="this optimizer has no parameter of this model"):
        regplug.attach(nn.Linear(2, 2), optimizer, ["l1(0.1)"])


def test_groups_keep_their_own_learning_rates():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "lr": 0.2}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    before = [layer.weight.detach().clone() for layer in model]
    session = regplug.attach(model, optimizer, ["weight_decay(0.5)"])
    assert [entry.group_index for entry in session.coverage(Selection())] == [0, 1]
    train_once(model, optimizer)
    torch.testing.assert_close(model[0].weight.detach(), before[0] * 0.95)
    torch.testing.assert_close(model[1].weight.detach(), before[1] * 0.9)
