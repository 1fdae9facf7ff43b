"""Parameters that come later: in groups of the optimizer, in layers of the model."""

import pytest
import torch
from torch import nn

import regplug
from regplug import hookimpl
from regplug.errors import (
    SpecError,
)
from regplug_builtins import WeightDecay


def test_parameters_added_to_the_optimizer_are_covered_from_then_on():
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)]).double()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["l2(0.5)", "weight_decay(0.5)"])
    for layer in model:
        layer.weight.grad = torch.zeros_like(layer.weight)
    first, second = (layer.weight.detach().clone() for layer in model)
    optimizer.step()
    assert torch.equal(model[1].weight, second)
    assert session.metrics()["l2/value"] == pytest.approx(
        0.5 * model[0].weight.square().sum().item()
    )
    optimizer.add_param_group({"params": model[1].parameters(), "lr": 0.2})
    for layer in model:
        layer.weight.grad.zero_()
    optimizer.step()
    # w ← (1 − lr·0.5)·w, less lr·2·0.5·w at the weight that the gradient was taken at.
    torch.testing.assert_close(model[0].weight.detach(), first * (1 - 0.05 - 0.1) ** 2)
    torch.testing.assert_close(model[1].weight.detach(), second * (1 - 0.1 - 0.2))
    assert "2" in session.describe().splitlines()[3].split()


@pytest.mark.parametrize("who", ["on_state", "on_closure", "watcher", "outside"])
def test_coverage_follows_the_optimizer_also_where_no_plugin_acts_at_the_step(who):
    selection, seen = regplug.Selection("all"), []

    def look(session):
        seen.append(len(session.coverage(selection)))

    class Asks(regplug.Plugin):
        @hookimpl
        def on_state(self, session):
            look(session)

        @hookimpl
        def on_closure(self, session):
            if who == "on_closure":
                look(session)

    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, [Asks()])
    look(session)
    if who == "watcher":
        session.after_each_step(look)
    for layer in model:
        layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.add_param_group({"params": model[1].parameters()})
    optimizer.step(lambda: torch.zeros(()))
    if who == "on_state":
        session.state_dict()
    if who == "outside":
        look(session)
    assert seen == [1, 2]


def test_group_added_with_its_own_decay_is_an_error_or_taken_over():
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    for existing in ("error", "replace"):
        optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
        session = regplug.attach(model, optimizer, [WeightDecay(0.5, existing=existing)])
        optimizer.add_param_group({"params": model[1].parameters(), "weight_decay": 0.25})
        for w in model.parameters():
            w.grad = torch.zeros_like(w)
        if existing == "error":
            with pytest.raises(SpecError, match=r"group 1 already, by weight_decay=0\.25"):
                optimizer.step()
        else:
            optimizer.step()
            assert optimizer.param_groups[1]["weight_decay"] == 0
        session.detach()
        assert optimizer.param_groups[1]["weight_decay"] == 0.25


def test_layer_added_to_a_model_without_an_optimizer_is_covered():
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).double()
    session = regplug.attach(model, plugins=["l2(0.5)"])
    model.append(nn.Linear(2, 2, bias=False).double())
    for w in model.parameters():
        w.grad = torch.zeros_like(w)
    with session.step():
        pass
    torch.testing.assert_close(model[1].weight.grad, model[1].weight.detach())
