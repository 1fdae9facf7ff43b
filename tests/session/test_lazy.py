"""Lazy parameters, which have no shape before the first forward, and are the same object after."""

import pytest
import torch
from torch import nn

import regplug
from regplug import Selection
from regplug.errors import PluginError, RegplugError, SelectionError
from regplug.report.recorder import Recorder
from regplug_builtins import L1, L2, L2SP, GroupLasso, NonNegative


def step(model, optimizer, session, x=None):
    optimizer.zero_grad()
    loss = (0 * model(torch.ones(2, 3) if x is None else x)).sum()
    session.loss(loss).backward()
    optimizer.step()


def alone():
    return nn.Sequential(nn.LazyLinear(2))


def beside():
    return nn.Sequential(nn.Linear(3, 4), nn.LazyBatchNorm1d(), nn.LazyLinear(2))


WEIGHTS = {alone: ["0.weight"], beside: ["0.weight", "2.weight"]}


@pytest.mark.parametrize("model", [alone, beside])
@pytest.mark.parametrize(
    ("plugin", "expected"),
    [
        (lambda: L2(0.5, delivery="step"), lambda w: 0.9 * w),
        (lambda: L2(0.5, delivery="loss"), lambda w: 0.9 * w),
        (lambda: L2(0.5), lambda w: 0.9 * w),
        (lambda: L2(0.5, delivery="proximal"), lambda w: w / 1.1),
        (lambda: L1(0.5, delivery="proximal"), lambda w: nn.functional.softshrink(w, 0.05)),
        (lambda: "weight_decay(0.5)", lambda w: 0.95 * w),
        (lambda: "non_negative", lambda w: w.clamp(min=0)),
        (lambda: "unit_norm", lambda w: w / w.norm(dim=1, keepdim=True)),
        (
            lambda: GroupLasso(0.5, delivery="step"),
            lambda w: w * (1 - 0.05 * w.shape[1] ** 0.5 / w.norm(dim=1, keepdim=True)),
        ),
    ],
)
def test_a_lazy_weight_is_covered_from_its_first_forward_on(model, plugin, expected):
    torch.manual_seed(0)
    kind, model = model, model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, [plugin()])
    starts = {}
    for layer in model:  # of what the forward has just made, before anything acts on it

        def remember(module, inputs, output, layer=layer):
            starts.update({id(p): p.detach().clone() for p in layer.parameters()})

        layer.register_forward_hook(remember)
    step(model, optimizer, session)
    for name, p in model.named_parameters():
        start = starts[id(p)]
        wanted = expected(start) if name in WEIGHTS[kind] else start
        torch.testing.assert_close(p.detach(), wanted, msg=name)
    covered = [entry.name for entry in session.coverage(Selection())]
    assert covered == WEIGHTS[kind]


@pytest.mark.parametrize("delivery", ["step", "loss", "proximal"])
def test_under_adam_too(delivery):
    model = alone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, [L1(0.1, delivery=delivery)])
    step(model, optimizer, session)
    before = model[0].weight.detach().clone()
    optimizer.zero_grad()
    loss = model(torch.ones(2, 3)).sum()
    session.loss(loss).backward()
    optimizer.step()
    assert session.steps == 2
    assert not torch.equal(model[0].weight.detach(), before)
    assert session.metrics()["l1/value"] == pytest.approx(
        0.1 * model[0].weight.abs().sum().item(), rel=1e-5
    )


def test_until_then_it_is_said():
    model = alone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plugins = ["l1(0.1)", "max_norm(3)", "weight_decay(0.1)", "gradient_noise(0.1)"]
    session = regplug.attach(model, optimizer, plugins)
    told = session.describe()
    assert (
        "l1, max_norm, weight_decay, gradient_noise: 2 lazy parameters have no shape yet "
        "(0.weight, 0.bias): covered, if selected, from the first forward on"
    ) in told
    assert session.metrics()["l1/value"] == 0
    assert session.metrics()["l1/zeros"] == 0
    step(model, optimizer, session)
    told = session.describe()
    assert "lazy" not in told
    assert "l1, max_norm, weight_decay: covers 0.weight\n" in told
    assert session.metrics()["l1/value"] > 0


@pytest.mark.parametrize(
    ("where", "count"),
    [("*.bias", 1), ("0.weight", 1), ("all", 2), (lambda n, w, m: w.shape[0] == 2, 2)],
)
def test_selections_of_any_kind_wait_for_the_shape(where, count):
    model = alone()
    session = regplug.attach(model, plugins=[L2(1.0, where=where)])
    assert f"{count} lazy parameter{' has' if count == 1 else 's have'} no shape" in (
        session.describe()
    )
    model(torch.ones(2, 3))
    expected = {"*.bias": ["0.bias"], "0.weight": ["0.weight"]}.get(
        where if isinstance(where, str) else None, ["0.weight", "0.bias"]
    )
    assert [e.name for e in session.coverage(Selection(where))] == expected
    total = sum(model.get_parameter(name).square().sum().item() for name in expected)
    assert session.metrics()["l2/value"] == pytest.approx(total)


def test_what_is_excluded_never_waits():
    model = nn.Sequential(nn.LazyLinear(2), nn.LazyLinear(2))
    session = regplug.attach(model, plugins=["l1(0.1, where=['weights', '!0.*'])"])
    assert "2 lazy parameters have no shape yet (1.weight, 1.bias)" in session.describe()


def test_messages_use_the_word():
    model = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())
    with pytest.raises(SelectionError, match=r"'nothing' matches no parameter.*0\.weight"):
        regplug.attach(model, plugins=["l1(0.1, where='nothing')"])
    with pytest.raises(SelectionError, match=r"the model has .* \(4 lazy, with no shape yet\)"):
        regplug.attach(model, plugins=["l1(0.1, where=['weights', '!0.*'])"])
    other = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    with pytest.raises(SelectionError, match="another model"):
        regplug.attach(model, other, plugins=["l1(0.1)"])
    part = torch.optim.SGD(model[1].parameters(), lr=0.1)
    with pytest.raises(SelectionError, match=r"selects 0\.weight, 0\.bias \(2 lazy, with no shape"):
        regplug.attach(model, part, plugins=["l1(0.1)"])


def test_what_turns_out_to_be_nothing_is_told_at_the_step():
    class LazyScale(nn.modules.lazy.LazyModuleMixin, nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.UninitializedParameter()

        def initialize_parameters(self, x):
            self.scale.materialize(x.shape[1:])
            nn.init.ones_(self.scale)

        def forward(self, x):
            return x * self.scale

    model = LazyScale()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["l1(0.1)"])
    with pytest.raises(RegplugError, match=r"no parameter has two or more dimensions"):
        step(model, optimizer, session)


def test_rows_of_what_turns_out_to_be_a_vector_are_refused():
    for plugin in ("group_lasso(0.1, where='all')", "max_norm(3, where='all')"):
        model = alone()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with (
            regplug.attach(model, optimizer, [plugin]) as session,
            pytest.raises((SelectionError, PluginError), match="neither rows nor columns"),
        ):
            step(model, optimizer, session)


def test_weight_decay_of_the_optimizer_is_found_once_a_weight_is_there():
    model = alone()
    optimizer = torch.optim.AdamW(model.parameters())
    session = regplug.attach(model, optimizer, ["weight_decay(0.1)"])
    with pytest.raises(RegplugError, match="decays the parameters of group 0 already"):
        step(model, optimizer, session)
    session.detach()
    replaced = regplug.attach(model, optimizer, ["weight_decay(0.1, existing='replace')"])
    assert optimizer.param_groups[0]["weight_decay"] == 0
    replaced.detach()
    assert optimizer.param_groups[0]["weight_decay"] == 0.01


def test_anchors_are_taken_when_the_weight_is_made():
    torch.manual_seed(0)
    model = alone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, [L2SP(1.0, delivery="step")])
    step(model, optimizer, session)
    anchor = model[0].weight.detach().clone()
    assert session.metrics()["l2_sp/value"] == 0
    with torch.no_grad():
        model[0].weight += 1
    step(model, optimizer, session)
    torch.testing.assert_close(model[0].weight.detach(), anchor + 0.8)
    saved = session.state_dict()
    torch.testing.assert_close(saved["plugins"]["l2_sp"]["anchors"]["0.weight"], anchor)

    resumed = alone()
    updates = torch.optim.SGD(resumed.parameters(), lr=0.1)
    session = regplug.attach(resumed, updates, [L2SP(1.0, delivery="step")])
    session.load_state_dict(saved)
    assert session.state_dict()["plugins"]["l2_sp"]["anchors"].keys() == {"0.weight"}
    resumed.load_state_dict(model.state_dict())
    step(resumed, updates, session)
    torch.testing.assert_close(resumed[0].weight.detach(), anchor + 0.64)


def test_anchors_of_other_weights_are_refused():
    session = regplug.attach(alone(), plugins=[L2SP(1.0)])
    state = {"steps": 0, "plugins": {"l2_sp": {"anchors": {"else.weight": torch.ones(2, 3)}}}}
    with pytest.raises(RegplugError, match=r"the saved anchors are of else\.weight"):
        session.load_state_dict(state)


def test_gradient_noise_reaches_it():
    model = alone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    session = regplug.attach(model, optimizer, ["gradient_noise(1.0)"])
    step(model, optimizer, session)
    assert float(model[0].weight.grad.abs().min()) > 0


def test_a_recorder_has_it_from_then_on():
    model = alone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["l1(0.1)"])
    with Recorder(session) as recorder:
        step(model, optimizer, session)
        assert [row.layer for row in recorder.layers] == ["0.weight"]


def test_a_hand_written_update_has_it_from_then_on():
    model = alone()
    session = regplug.attach(model, plugins=["l2(0.5, delivery='step')"])
    model(torch.ones(1, 3)).sum().backward()
    start = model[0].weight.grad.clone()
    with session.step(lr=0.1), torch.no_grad():
        torch.testing.assert_close(model[0].weight.grad, start + model[0].weight)


def test_ranks_agree_on_what_may_be_covered():
    model = alone()
    plugin = L1(0.1)
    session = regplug.attach(model, plugins=[plugin, NonNegative(), "weight_decay(0.1)"])
    for plugin in session.plugins:
        assert plugin.agreement(session)["covers"] == ["0.weight", "0.bias"]


def test_a_forward_before_attaching_leaves_nothing_lazy():
    model = alone()
    model(torch.ones(2, 3))
    session = regplug.attach(model, plugins=["l1(0.1)"])
    assert "covers 0.weight" in session.describe()
    assert "lazy" not in session.describe()
