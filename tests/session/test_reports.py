"""What a session tells: metrics, its description, its plugins."""

import pytest
import torch
from torch import nn

import regplug
from regplug_builtins import L1
from tests.session.small_loop import EVERYTHING, network, train


def test_metrics_are_those_of_the_formulas():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1), nn.Linear(2, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 0.0]]))
        model[2].weight.copy_(torch.tensor([[0.5, 0.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(
        model,
        optimizer,
        [
            "l1(linear(0.1, 0.3, steps=2))",
            "l2(0.5)",
            "elastic_net(0.1, linear(0.2, 0.4, steps=2))",
            "weight_decay(0.01)",
            "dropout(0.25)",
        ],
    )
    assert session.metrics() == pytest.approx(
        {
            "l1/value": 0.1 * 3.5,
            "l1/strength": 0.1,
            "l1/zeros": 0.5,
            "l2/value": 0.5 * 5.25,
            "l2/strength": 0.5,
            "l2/zeros": 0.5,
            "elastic_net/value": 0.1 * 3.5 + 0.2 * 5.25,
            "elastic_net/l1_strength": 0.1,
            "elastic_net/l2_strength": 0.2,
            "elastic_net/zeros": 0.5,
            "weight_decay/strength": 0.01,
            "dropout/rate": 0.25,
        }
    )
    assert all(type(value) is float for value in session.metrics().values())
    model(torch.ones(1, 2).double()).sum().backward()
    optimizer.step()
    metrics = session.metrics()
    assert metrics["l1/strength"] == pytest.approx(0.2)
    assert metrics["elastic_net/l2_strength"] == pytest.approx(0.3)
    value = sum(model[i].weight.abs().sum().item() for i in (0, 2))
    assert metrics["l1/value"] == pytest.approx(0.2 * value)


def test_describe_tells_what_acts_where():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    session = regplug.attach(model, optimizer, EVERYTHING, name="digits")
    version = regplug.__version__
    shown = [" ".join(line.split()) for line in session.describe().splitlines()]
    del shown[2]  # the rule under the heads
    assert shown == [
        "digits: Sequential with AdamW, 0 steps",
        "plugin from acts tensors weights strength now",
        f"l1 regplug {version} auto 2 48 0.1",
        f"l2 regplug {version} loss 2 48 0.1",
        f"elastic_net regplug {version} proximal 2 48 l1_strength 0.1, l2_strength 0.1",
        f"weight_decay regplug {version} before_step, replacing 0.01 2 48 0.1",
        f"dropout regplug {version} 1 dropout rate, after_step – – 0.9",
        "l1, l2, elastic_net, weight_decay: covers 0.weight, 3.weight",
        "weight_decay: λ = 0.1 by scale='lr' is now what would be 0.0001 by 'schedule', "
        "0.0001 by 'none', 0.1 by 'lr_squared'",
        "dropout: sets 2.p (own 0.3)",
    ]
    train(model, optimizer, 2, session)
    described = session.describe()
    assert "2 steps" in described
    assert "loss (auto)" in described
    assert "0.15" in described


def test_session_shows_what_it_is():
    model = network()
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(compiled, optimizer, ["l1(0.1)"], name="digits")
    assert session.model is model
    assert session.optimizer is optimizer
    assert [plugin.name for plugin in session.plugins] == ["l1"]
    assert repr(session) == "<regplug.Session 'digits': l1; 0 steps>"
    assert repr(regplug.attach(model)) == "<regplug.Session 'regplug': no plugins; 0 steps>"


def test_plugins_may_be_given_singly_or_not_at_all():
    model = network()
    assert [p.name for p in regplug.attach(model, plugins="l1(0.1)").plugins] == ["l1"]
    assert [p.name for p in regplug.attach(model, plugins=L1(0.1)).plugins] == ["l1"]
    assert regplug.attach(model).plugins == ()
    assert [p.name for p in regplug.attach(model, plugins=iter(["l1(0.1)"])).plugins] == ["l1"]
