"""Dropout scheduling: every kind of rate, at every step, and back."""

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import regplug
from regplug.errors import RegplugError, SelectionError, SpecError
from regplug.schedules import linear
from regplug_builtins import Dropout


class Attention(nn.Module):
    """Keeps its rates as plain floats, as transformers and timm do."""

    def __init__(self):
        super().__init__()
        self.attention_dropout = 0.125
        self.dropout_p = 0.25
        self.hidden_dropout_prob = 0.375
        # No rates, whatever they are called:
        self.dropout = True
        self.drop_layers = 0.5
        self.backdrop = 0.5
        self.p = 0.5
        self.drop_prob = 2.5
        self.dropout_rate = "high"

    def forward(self, x):
        return F.dropout(x, self.attention_dropout, self.training)


class DropPath(nn.Module):
    """timm's stochastic depth."""

    def __init__(self):
        super().__init__()
        self.drop_prob = 0.0625
        self.scale_by_keep = True


class SpatialDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = 0.0625


class Zoo(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = nn.Dropout(0.1)
        self.channels = nn.ModuleList([nn.Dropout1d(0.2), nn.Dropout2d(0.3), nn.Dropout3d(0.4)])
        self.alpha = nn.ModuleList([nn.AlphaDropout(0.15), nn.FeatureAlphaDropout(0.35)])
        self.heads = nn.MultiheadAttention(4, 2, dropout=0.45)
        self.recurrent = nn.ModuleList(
            [
                nn.RNN(4, 4, num_layers=2, dropout=0.5),
                nn.LSTM(4, 4, num_layers=2, dropout=0.55),
                nn.GRU(4, 4, num_layers=2, dropout=0.6),
                nn.LSTM(4, 4),
            ]
        )
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.65)
        self.own = Attention()
        self.path = DropPath()
        self.spatial = SpatialDropout()
        self.out = nn.Linear(4, 4)

    def forward(self, x):
        return self.out(self.plain(x))


RATES = {
    "plain.p": 0.1,
    "channels.0.p": 0.2,
    "channels.1.p": 0.3,
    "channels.2.p": 0.4,
    "alpha.0.p": 0.15,
    "alpha.1.p": 0.35,
    "heads.dropout": 0.45,
    "recurrent.0.dropout": 0.5,
    "recurrent.1.dropout": 0.55,
    "recurrent.2.dropout": 0.6,
    "recurrent.3.dropout": 0.0,
    "layer.self_attn.dropout": 0.65,
    "layer.dropout.p": 0.65,
    "layer.dropout1.p": 0.65,
    "layer.dropout2.p": 0.65,
    "own.attention_dropout": 0.125,
    "own.dropout_p": 0.25,
    "own.hidden_dropout_prob": 0.375,
    "path.drop_prob": 0.0625,
    "spatial.p": 0.0625,
}


def rates(model):
    """Read every rate of the zoo from its module."""
    found = {}
    for name in RATES:
        path, _, attribute = name.rpartition(".")
        found[name] = float(getattr(model.get_submodule(path), attribute))
    return found


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()


# Every kind, at every step


def test_every_kind_of_rate_is_set_at_every_step():
    """Attention and recurrent layers, and models, keep floats that a scan for nn.Dropout misses."""
    model = Zoo()
    assert rates(model) == RATES
    others = {k: v for k, v in vars(model.own).items() if k[0] != "_"}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["dropout(linear(0.8, 0.2, steps=3))"])
    for expected in (0.8, 0.6, 0.4, 0.2, 0.2):
        assert rates(model) == pytest.approx(dict.fromkeys(RATES, expected))
        assert session.metrics() == pytest.approx({"dropout/rate": expected})
        step(model, optimizer)
    untouched = ("dropout", "drop_layers", "backdrop", "p", "drop_prob", "dropout_rate")
    for name in untouched:
        assert getattr(model.own, name) == others[name]
    described = session.describe()
    for name, own in RATES.items():
        assert f"{name} (own {own:g})" in described
    session.detach()
    assert rates(model) == RATES
    assert type(model.plain.p) is float
    assert type(model.own.attention_dropout) is float


def test_rates_act_on_what_is_dropped():
    model = nn.Sequential(nn.Dropout(0.1), Attention())
    model.weight = nn.Parameter(torch.zeros(1), requires_grad=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.ones(100, 100)

    def dropped():
        torch.manual_seed(0)
        return [(layer(x) == 0).double().mean().item() for layer in model[:2]]

    with regplug.attach(model, optimizer, ["dropout(piecewise({0: 0.75, 1: 0}))"]):
        assert dropped() == pytest.approx([0.75, 0.75], abs=0.02)
        assert torch.equal(model.eval()(x), x)
        model.train()
        model.weight.grad = torch.zeros(1)
        optimizer.step()
        assert dropped() == [0, 0]
    assert dropped() == pytest.approx([0.1, 0.125], abs=0.02)


def test_moving_rates_run_in_every_layer():
    """At rate 0 each layer in training mode gives what it gives in evaluation."""
    model = Zoo()
    layers = {
        "heads": lambda x: model.heads(x, x, x)[0],
        "layer": model.layer,
        **{f"recurrent {i}": lambda x, i=i: model.recurrent[i](x)[0] for i in range(3)},
        **{f"channels {i}": lambda x, i=i: model.channels[i](x) for i in range(1)},
        **{f"alpha {i}": lambda x, i=i: model.alpha[i](x) for i in range(2)},
        "own": model.own,
    }
    x = torch.randn(5, 3, 4)
    expected = {name: run(x) for name, run in layers.items() if not model.eval().training}
    session = regplug.attach(model.train(), plugins=["dropout(linear(0.5, 0, steps=10))"])
    for name, run in layers.items():
        assert not torch.allclose(run(x), expected[name], atol=1e-5), name
    session.load_state_dict({"steps": 10, "plugins": {"dropout": {}}})
    for name, run in layers.items():
        torch.testing.assert_close(run(x), expected[name], msg=name)


def test_rate_of_one_drops_all_and_keeps_gradients_finite():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    regplug.attach(model, plugins=["dropout(1)"])
    out = model(torch.ones(2, 3))
    out.sum().backward()
    assert torch.equal(out, torch.zeros(2, 3))
    assert torch.equal(model[0].weight.grad, torch.zeros(3, 3))


def test_module_that_is_used_twice_is_set_once():
    shared = nn.Dropout(0.5)
    model = nn.Sequential(nn.Linear(2, 2), shared, shared)
    session = regplug.attach(model, plugins=["dropout(0.5, relative=True)"])
    assert float(shared.p) == 0.25
    assert "1 dropout rate," in session.describe()


def test_dropout_needs_no_optimizer_and_no_parameters():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    session = regplug.attach(model, plugins=["dropout(linear(0.4, 0, steps=2))"])
    for expected in (0.4, 0.2, 0.0):
        assert float(model[1].p) == pytest.approx(expected)
        model(torch.ones(1, 2)).sum().backward()
        with session.step():
            pass


# Relative


def test_relative_keeps_the_ratio_of_the_modules_own_rates():
    model = Zoo()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(
        model, optimizer, ["dropout(linear(1.5, 0.5, steps=2), relative=True)"]
    )
    for factor in (1.5, 1.0, 0.5):
        assert rates(model) == pytest.approx({name: factor * own for name, own in RATES.items()})
        mean = factor * sum(RATES.values()) / len(RATES)
        assert session.metrics() == pytest.approx({"dropout/rate": mean, "dropout/factor": factor})
        step(model, optimizer)
    session.detach()
    assert rates(model) == RATES


def test_relative_rate_that_will_leave_its_range_is_refused_at_attach():
    model = Zoo()
    message = r"recurrent\.1\.dropout would get rate 1\.1, which is 2·0\.55"
    with pytest.raises(SpecError, match=message):
        regplug.attach(model, plugins=["dropout(linear(0, 2, steps=10_000), relative=True)"])
    assert rates(model) == RATES


def test_relative_rate_of_a_callable_that_leaves_its_range_is_blamed_at_its_step():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(
        model, optimizer, [Dropout(lambda step: 1.0 + step, relative=True, name="drop")]
    )
    step(model, optimizer)
    with pytest.raises(RegplugError, match=r"drop \(regplug .* after_step at step 1.*1\.p would"):
        step(model, optimizer)
    session.detach()
    assert model[1].p == 0.5


# Which


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("*", set(RATES)),
        ("plain", {"plain.p"}),
        ("plain.p", {"plain.p"}),
        ("recurrent.*", {name for name in RATES if name.startswith("recurrent")}),
        ("*.dropout", {name for name in RATES if name.endswith(".dropout")} | {"layer.dropout.p"}),
        (["layer*", "!layer.dropout?"], {"layer.self_attn.dropout", "layer.dropout.p"}),
        ("!*.p", {name for name in RATES if not name.endswith(".p")}),
        (("own.*", "path"), {n for n in RATES if n.startswith("own")} | {"path.drop_prob"}),
    ],
)
def test_patterns_name_modules_or_their_attributes(where, expected):
    model = Zoo()
    with regplug.attach(model, plugins=[Dropout(0.99, where=where)]) as session:
        assert {name for name, rate in rates(model).items() if rate == 0.99} == expected
        plural = "" if len(expected) == 1 else "s"
        assert f" {len(expected)} dropout rate{plural}," in session.describe()
    assert rates(model) == RATES


def test_two_schedules_for_two_parts():
    model = Zoo()
    specs = ["dropout(0.9, where='recurrent.*')", "dropout(0.8, where='!recurrent.*', name='rest')"]
    with regplug.attach(model, plugins=specs) as session:
        found = rates(model)
        assert session.metrics() == {"dropout/rate": 0.9, "rest/rate": 0.8}
    assert {found[name] for name in RATES if name.startswith("recurrent")} == {0.9}
    assert {found[name] for name in RATES if not name.startswith("recurrent")} == {0.8}
    assert rates(model) == RATES


@pytest.mark.parametrize("where", ["nothing", "Plain", "!*", ["plain", "!plain*"]])
def test_pattern_that_matches_nothing_shows_what_there_is(where):
    with pytest.raises(SelectionError, match=re.escape("matches no dropout") + r".*plain\.p"):
        regplug.attach(Zoo(), plugins=[Dropout(0.5, where=where)])


def test_model_without_dropout_says_so():
    with pytest.raises(SelectionError, match=r"dropout: .*the model has none at all"):
        regplug.attach(nn.Linear(2, 2), plugins=["dropout(0.5)"])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Dropout(-0.1), SpecError, r"rate must be finite and within \[0, 1\], got -0\.1"),
        (lambda: Dropout(1.1), SpecError, r"rate must be .*got 1\.1"),
        (lambda: Dropout(math.nan), SpecError, "rate must be finite, got nan"),
        (lambda: Dropout("0.5"), SpecError, "rate must be a number, got '0.5'"),
        (lambda: Dropout(linear(0, 2, steps=10)), SpecError, r"rate must be .*got 2"),
        (lambda: Dropout(-1, relative=True), SpecError, "factor must be .*got -1"),
        (
            lambda: Dropout(0.5, relative="yes"),
            SpecError,
            "relative must be True or False, .*'yes'",
        ),
        (lambda: Dropout(0.5, where=[]), SelectionError, r"where must be .*got \[\]"),
        (lambda: Dropout(0.5, where="!"), SelectionError, "where must be .*got '!'"),
        (lambda: Dropout(0.5, where=5), SelectionError, "where must be .*got 5"),
        (lambda: Dropout(0.5, where=[5]), SelectionError, r"where must be .*got \[5\]"),
        (lambda: Dropout(0.5, where=None), SelectionError, "where must be .*got None"),
        (lambda: Dropout(0.5, name=""), SpecError, "name must be .*got ''"),
    ],
)
def test_wrong_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


# The loop around it


def test_resumed_session_goes_on_with_the_rate_of_its_step():
    model = Zoo()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["dropout(linear(0.8, 0.2, steps=6))"])
    for _ in range(3):
        step(model, optimizer)
    state = session.state_dict()
    fresh = Zoo()
    resumed = regplug.attach(fresh, plugins=["dropout(linear(0.8, 0.2, steps=6))"])
    assert float(fresh.plain.p) == 0.8
    resumed.load_state_dict(state)
    assert rates(fresh) == pytest.approx(dict.fromkeys(RATES, 0.5))


def test_copies_and_checkpoints_of_a_model_in_training_are_plain():
    model = Zoo()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, ["dropout(linear(0.8, 0.2, steps=6))"])
    step(model, optimizer)
    twin = copy.deepcopy(model)
    assert rates(twin) == pytest.approx(dict.fromkeys(RATES, 0.7))
    step(model, optimizer)
    assert rates(twin) == pytest.approx(dict.fromkeys(RATES, 0.7))
    assert set(model.state_dict()) == set(Zoo().state_dict())


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("dropout(linear(0.1, 0, steps=1000))", lambda t: 0.1 * max(0, 1 - t / 1000)),
        ("dropout(piecewise({0: 0, 1000: 0.1}))", lambda t: 0.1 * (t >= 1000)),
        ("dropout(linear(0.5, 0, steps=1000))", lambda t: 0.5 * max(0, 1 - t / 1000)),
        (
            Dropout(lambda t: 0.5 * (1 - math.exp(-0.01 * t))),
            lambda t: 0.5 * (1 - math.exp(-0.01 * t)),
        ),
    ],
    ids=["early", "late", "annealed", "curriculum"],
)
def test_shapes_of_the_literature(spec, shape):
    """Early and late dropout, annealed dropout, and curriculum dropout's p·(1 − exp(−γt))."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3))
    session = regplug.attach(model, plugins=[spec])
    for t in (0, 1, 500, 999, 1000, 5000):
        session.load_state_dict({"steps": t, "plugins": {"dropout": {}}})
        assert float(model[1].p) == pytest.approx(shape(t), abs=1e-7)
