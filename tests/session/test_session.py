"""A session's life: attaching, several at once, reporting, saving, and leaving no trace."""

import copy
import gc
import math
import warnings
import weakref
from collections import OrderedDict

import pytest
import torch
from torch import nn

import regplug
from regplug import hookimpl
from regplug.errors import (
    PluginError,
    RegplugError,
    SpecError,
    StateError,
    UnsupportedError,
)
from regplug.schedules import linear
from regplug_builtins import L1, L2, Dropout, ElasticNet, WeightDecay

EVERYTHING = (
    "l1(linear(0.1, 0.2, steps=4))",
    "l2(0.1, delivery='loss')",
    "elastic_net(0.1, 0.1, delivery='proximal')",
    "weight_decay(0.1, existing='replace')",
    "dropout(linear(0.9, 0.1, steps=4))",
)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(0.3), nn.Linear(8, 2))


def batches(count):
    generator = torch.Generator().manual_seed(2)
    for _ in range(count):
        yield torch.randn(5, 4, generator=generator), torch.randn(5, 2, generator=generator)


def train(model, optimizer, count, session=None):
    """Run a plain loop, through the loss event if there is a session."""
    torch.manual_seed(3)
    for x, y in batches(count):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        if session is not None:
            loss = session.loss(loss)
        loss.backward()
        optimizer.step()


def same(ours, theirs):
    """Tell whether two state dicts hold the same, to the bit."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


def hooks_of(optimizer, model):
    """Return every hook that is registered on either."""
    kept = [value for name, value in vars(optimizer).items() if name.endswith("_hooks")]
    for module in model.modules():
        kept += [value for name, value in vars(module).items() if name.endswith("_hooks")]
    for parameter in model.parameters():
        kept += [parameter._backward_hooks, parameter._post_accumulate_grad_hooks]
    return [hook for hooks in kept if hooks for hook in hooks]


# Nothing is left behind


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


# Several sessions


def test_sessions_of_a_gan_over_two_models_keep_to_their_own():
    generator, critic = nn.Linear(3, 3), nn.Linear(3, 1)
    of_generator = torch.optim.SGD(generator.parameters(), lr=0.1)
    of_critic = torch.optim.SGD(critic.parameters(), lr=0.1)
    sessions = [
        regplug.attach(generator, of_generator, ["l2(0.5)"], name="generator"),
        regplug.attach(critic, of_critic, ["l1(0.25)"], name="critic"),
    ]
    noise = torch.randn(4, 3)
    before = generator.weight.detach().clone(), critic.weight.detach().clone()
    for turn, optimizer in enumerate([of_critic, of_generator, of_critic]):
        of_generator.zero_grad()
        of_critic.zero_grad()
        critic(generator(noise)).mean().mul(0).backward()
        optimizer.step()
        assert [s.steps for s in sessions] == [[0, 1], [1, 1], [1, 2]][turn]
    # The generator's gradients ran through the critic, and the other way round.
    expected = before[0] * (1 - 0.1 * 2 * 0.5)
    torch.testing.assert_close(generator.weight.detach(), expected)
    expected = before[1] - 2 * 0.1 * 0.25 * before[1].sign()
    torch.testing.assert_close(critic.weight.detach(), expected)


@pytest.mark.parametrize("delivery", ["step", "loss", "proximal"])
def test_two_optimizers_over_one_model_do_not_regularize_each_others(delivery):
    model = nn.ModuleDict({"generator": nn.Linear(3, 3), "critic": nn.Linear(3, 1)}).double()
    halves = [model["generator"], model["critic"]]
    optimizers = [torch.optim.SGD(half.parameters(), lr=0.1) for half in halves]
    sessions = [
        regplug.attach(model, optimizer, [L2(strength, delivery=delivery)], name=name)
        for optimizer, strength, name in zip(optimizers, [0.5, 0.25], model, strict=True)
    ]
    weights = [half.weight.detach().clone() for half in halves]
    for index, (session, optimizer) in enumerate(zip(sessions, optimizers, strict=True)):
        model.zero_grad()
        model["critic"](model["generator"](torch.zeros(1, 3).double())).sum().mul(0).backward()
        session.loss(torch.zeros((), dtype=torch.double)).add(
            0 * sum(w.sum() for w in model.parameters())
        ).backward()
        optimizer.step()
        step = 0.1 * 2 * session.plugins[0].strength
        shrunk = weights[index] * (1 / (1 + step) if delivery == "proximal" else 1 - step)
        torch.testing.assert_close(halves[index].weight.detach(), shrunk, rtol=1e-12, atol=0)
        assert torch.equal(halves[1 - index].weight, weights[1 - index]) or index == 1
    assert [s.metrics()["l2/value"] for s in sessions] == [
        pytest.approx(s * half.weight.square().sum().item())
        for s, half in zip([0.5, 0.25], halves, strict=True)
    ]


def test_sessions_on_one_optimizer_both_act_and_detach_by_themselves():
    model = nn.Linear(2, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.weight.grad = torch.zeros_like(model.weight)
    with regplug.attach(model, optimizer, ["l2(0.5)"]) as outer:
        with regplug.attach(model, optimizer, ["l2(1.0)"], name="inner") as inner:
            before = model.weight.detach().clone()
            optimizer.step()
            torch.testing.assert_close(model.weight.detach(), before * (1 - 0.1 * (1 + 2)))
        model.weight.grad.zero_()
        before = model.weight.detach().clone()
        optimizer.step()
        torch.testing.assert_close(model.weight.detach(), before * (1 - 0.1))
    assert (outer.steps, inner.steps) == (2, 1)


def test_one_instance_belongs_to_one_session_at_a_time():
    l1 = L1(0.1)
    with regplug.attach(network(), plugins=[l1], name="first"):
        with pytest.raises(SpecError, match=r"l1 is attached to another session already.*first"):
            regplug.attach(network(), plugins=[l1])
        with pytest.raises(SpecError, match="two plugins are named 'l1'"):
            regplug.attach(network(), plugins=[L1(0.1), "l1(0.2)"])
    regplug.attach(network(), plugins=[l1]).detach()


def test_two_of_a_kind_under_two_names():
    model = network()
    session = regplug.attach(
        model, plugins=["l1(0.1, where='0.*')", "l1(0.2, where='3.*', name='head')"]
    )
    metrics = session.metrics()
    assert (metrics["l1/strength"], metrics["head/strength"]) == (0.1, 0.2)
    assert [plugin.name for plugin in session.plugins] == ["l1", "head"]


# Parameters that come later


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


# Loops without an optimizer


def test_step_by_hand_fires_the_step_events():
    """Loops exist whose weights are updated by hand under no_grad."""
    model = nn.Linear(3, 1, bias=False).double()
    start = model.weight.detach().clone()
    session = regplug.attach(
        model, plugins=["l2(0.5)", "weight_decay(0.1)", "l1(0.2, delivery='proximal')"]
    )
    model(torch.ones(1, 3).double()).sum().backward()
    with session.step(lr=0.1), torch.no_grad():
        for w in model.parameters():
            w.sub_(0.1 * w.grad)
    gradient = 1 + 2 * 0.5 * start
    moved = (1 - 0.1 * 0.1) * start - 0.1 * gradient
    expected = moved.sign() * (moved.abs() - 0.1 * 0.2).clamp(min=0)
    torch.testing.assert_close(model.weight.detach(), expected, rtol=0, atol=1e-12)
    assert session.steps == 1


@pytest.mark.parametrize("spec", ["weight_decay(0.1)", "l1(0.1, delivery='proximal')"])
def test_step_by_hand_says_which_plugin_wants_the_learning_rate(spec):
    model = nn.Linear(3, 1)
    session = regplug.attach(model, plugins=[spec])
    model(torch.ones(1, 3)).sum().backward()
    with pytest.raises(RegplugError, match=r"with session.step\(lr=…\)"), session.step():
        pass


def test_step_by_hand_that_raised_is_not_counted():
    model = nn.Linear(3, 1)
    session = regplug.attach(model, plugins=["l1(0.1)"])
    model(torch.ones(1, 3)).sum().backward()
    with pytest.raises(ZeroDivisionError), session.step():
        _ = 1 / 0
    assert session.steps == 0


def test_step_by_hand_beside_an_optimizer_is_refused():
    model = network()
    session = regplug.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ["l1(0.1)"])
    with pytest.raises(UnsupportedError, match="has an optimizer"), session.step():
        pass


@pytest.mark.parametrize("lr", [-0.1, math.nan, "fast"])
def test_step_by_hand_refuses_a_wrong_learning_rate(lr):
    session = regplug.attach(network(), plugins=["l1(0.1)"])
    with pytest.raises(SpecError, match=f"lr .*{lr}"), session.step(lr=lr):
        pass


# Reports


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


# Saving


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


# Optimizers that call no hooks


class Lookahead(torch.optim.Optimizer):
    """As timm's: not initialised as an optimizer on purpose, so hooks on it never fire."""

    def __init__(self, base, alpha=0.5, k=2):
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self._base_optimizer = base
        self.param_groups = base.param_groups
        self.defaults = base.defaults
        self.state = {}
        self.alpha, self.k, self.count = alpha, k, 0

    @torch.no_grad()
    def step(self, closure=None):
        loss = self._base_optimizer.step(closure)
        self.count += 1
        for group in self.param_groups:
            for w in group["params"]:
                slow = self.state.setdefault(w, w.detach().clone())
                if self.count % self.k == 0:
                    slow.add_(w - slow, alpha=self.alpha)
                    w.copy_(slow)
        return loss

    def zero_grad(self):
        self._base_optimizer.zero_grad()


def test_wrapper_whose_hooks_never_fire_is_attached_to_inside():
    """timm's Lookahead accepts a step hook and never calls it."""
    model = network()
    lookahead = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1))
    fired = []
    lookahead.register_step_pre_hook(lambda *_: fired.append(True))
    session = regplug.attach(model, lookahead, ["l1(0.1)"])
    train(model, lookahead, 3)
    assert fired == []
    assert session.steps == 3
    assert session.optimizer is lookahead._base_optimizer


def test_wrapper_with_nothing_usable_inside_is_refused():
    class Opaque(Lookahead):
        def __init__(self, base):
            super().__init__(base)
            self.hidden = self.__dict__.pop("_base_optimizer")

    model = network()
    with pytest.raises(UnsupportedError, match=r"Opaque never calls .*step hooks.*it wraps"):
        regplug.attach(model, Opaque(torch.optim.SGD(model.parameters(), lr=0.1)), ["l1(0.1)"])


def test_loop_that_steps_another_optimizer_is_told():
    """Backward passes come through the loss event, and no step event ever fires."""
    model = nn.Linear(2, 1)
    attached, stepped = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    session = regplug.attach(model, attached, ["l1(0.1)"])
    assert "no step was seen" not in session.describe()

    def pass_and_step(optimizer):
        session.loss(model(torch.ones(1, 2)).sum()).backward()
        optimizer.step()

    pass_and_step(stepped)
    assert "1 backward passes came through the loss event" in session.describe()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(600):
            pass_and_step(stepped)
    assert len(told) == 1
    assert "attach to the optimizer whose step() the loop calls" in str(told[0].message)
    pass_and_step(attached)
    assert "no step was seen" not in session.describe()


def test_loop_by_hand_that_forgets_the_step_is_told():
    model = nn.Linear(2, 1)
    session = regplug.attach(model, plugins=["l1(0.1)"])
    session.loss(model(torch.ones(1, 2)).sum()).backward()
    assert "with session.step():" in session.describe()


# What the loss event returns


def test_loss_is_a_scalar_of_the_same_dtype():
    model = nn.Linear(2, 2).double()
    session = regplug.attach(model, plugins=["l2(0.5)"])
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        total = session.loss(torch.zeros((), dtype=dtype))
        assert total.dtype == dtype
        assert total.shape == ()
        expected = 0.5 * model.weight.square().sum()
        torch.testing.assert_close(total, expected.to(dtype))


@pytest.mark.parametrize("loss", [1.0, None, torch.zeros(3), torch.zeros(1, 1)])
def test_loss_that_is_no_scalar_is_refused(loss):
    session = regplug.attach(network(), plugins=["l2(0.5)"])
    with pytest.raises(SpecError, match="loss must be a 0-d tensor, got"):
        session.loss(loss)


def test_steps_count_for_schedules_from_the_first_step_on():
    seen = []

    class Seen(regplug.Plugin):
        strength = regplug.Scheduled()

        def __init__(self):
            self.strength = linear(0.0, 1.0, steps=4)

        @hookimpl
        def on_gradients(self, session):
            seen.append((session.steps, self.strength))

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, [Seen()])
    train(model, optimizer, 6)
    assert seen == [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0), (5, 1.0)]


def test_named_sessions_can_be_logged_together():
    """Their metrics have the session's name before them; without a name there is nothing to add."""
    models = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]
    plain = regplug.attach(models[0], plugins=["l1(0.1)"])
    assert set(plain.metrics()) == {"l1/value", "l1/strength", "l1/zeros"}
    plain.detach()
    first, second = (
        regplug.attach(model, plugins=["l1(0.1)"], name=name)
        for model, name in zip(models, ["generator", "critic"], strict=True)
    )
    assert set(first.metrics()) == {f"generator/{key}" for key in plain.metrics()}
    assert set(first.metrics()).isdisjoint(second.metrics())
    assert first.metrics()["l1/strength"] == first.metrics()["generator/l1/strength"] == 0.1
    with pytest.raises(KeyError, match="l2/value"):
        first.metrics()["l2/value"]
