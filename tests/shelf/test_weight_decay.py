"""Decoupled weight decay: AdamW and SGD's closed form to the bit, and nobody decays twice."""

import copy
import io

import pytest
import torch
from torch import nn, optim

import regplug
from regplug.errors import SpecError
from regplug.schedules import linear
from regplug_builtins import WeightDecay
from tests.helpers.compare import same
from tests.helpers.loops import batches
from tests.helpers.nets import norm_net


def network(dtype=torch.float32):
    return norm_net(nn.Tanh()).to(dtype)


def train(model, optimizer, count=8, scheduler=None, each=None):
    for step, (x, y) in enumerate(batches(count, model[0].weight.dtype)):
        if each is not None:
            each(step)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


# The formula


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"amsgrad": True},
        {"foreach": True},
        {"foreach": False},
        {"maximize": True},
        {"lr": torch.tensor(0.05), "foreach": False},
    ],
    ids=str,
)
def test_on_adam_it_is_adamw_to_the_bit(dtype, settings):
    model, written = network(dtype), network(dtype)
    ours = optim.Adam(model.parameters(), **{"lr": 0.05, **settings})
    theirs = optim.AdamW(written.parameters(), **{"lr": 0.05, "weight_decay": 0.3, **settings})
    regplug.attach(model, ours, ["weight_decay(0.3, where='all')"])
    train(model, ours)
    train(written, theirs)
    assert same(model, written)


def test_on_fused_adam_it_is_fused_adamw():
    """The fused kernel rounds its own decay otherwise, so this one is to rounding."""
    model, written = network(torch.float64), network(torch.float64)
    ours = optim.Adam(model.parameters(), lr=0.05, fused=True)
    theirs = optim.AdamW(written.parameters(), lr=0.05, weight_decay=0.3, fused=True)
    regplug.attach(model, ours, ["weight_decay(0.3, where='all')"])
    train(model, ours)
    train(written, theirs)
    for mine, its in zip(model.parameters(), written.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("kind", "decoupled"), [(optim.NAdam, True), (optim.RAdam, True)], ids=["nadam", "radam"]
)
def test_on_others_it_is_their_own_decoupled_decay(kind, decoupled):
    model, written = network(), network()
    ours = kind(model.parameters(), lr=0.01)
    theirs = kind(written.parameters(), lr=0.01, weight_decay=0.3, decoupled_weight_decay=decoupled)
    regplug.attach(model, ours, ["weight_decay(0.3, where='all')"])
    train(model, ours)
    train(written, theirs)
    assert same(model, written)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_on_sgd_it_is_the_closed_form_to_the_bit(momentum):
    """w ← (1 − lr·λ)·w − lr·v: decay passes through no momentum, and lr is that of the moment."""
    model, written = network(), network()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    regplug.attach(model, optimizer, ["weight_decay(0.3, where='all')"])
    train(model, optimizer)
    velocity = [torch.zeros_like(w) for w in written.parameters()]
    for x, y in batches(8):
        written.zero_grad()
        nn.functional.mse_loss(written(x), y).backward()
        with torch.no_grad():
            for v, w in zip(velocity, written.parameters(), strict=True):
                v.mul_(momentum).add_(w.grad)
                w.mul_(1 - 0.1 * 0.3).add_(v, alpha=-0.1)
    assert same(model, written)


def test_it_is_not_the_coupled_kind():
    """Several meanings of weight_decay are alive: this is lr·λ, and SGD's own is l2's."""
    after = {}
    for name, spec in {"decoupled": "weight_decay(0.2)", "coupled": "l2(0.1)"}.items():
        model = network()
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        regplug.attach(model, optimizer, [spec])
        train(model, optimizer)
        after[name] = model
    model = network()
    groups = [{"params": [w], "weight_decay": 0.2 * (w.ndim == 2)} for w in model.parameters()]
    train(model, optim.SGD(groups, lr=0.1, momentum=0.9))
    assert not torch.allclose(after["decoupled"][0].weight, model[0].weight, atol=1e-4)
    torch.testing.assert_close(after["coupled"][0].weight, model[0].weight)


def test_scheduled_learning_rate_and_strength():
    model, written = network(), network()
    ours = optim.Adam(model.parameters(), lr=0.05)
    theirs = optim.AdamW(written.parameters(), lr=0.05)
    regplug.attach(model, ours, ["weight_decay(linear(0.5, 0.1, steps=5), where='all')"])
    schedule = linear(0.5, 0.1, steps=5)

    def decay_of(step):
        theirs.param_groups[0]["weight_decay"] = schedule(step)

    train(model, ours, scheduler=optim.lr_scheduler.CosineAnnealingLR(ours, 8))
    train(written, theirs, scheduler=optim.lr_scheduler.CosineAnnealingLR(theirs, 8), each=decay_of)
    assert same(model, written)


def test_weights_alone_are_decayed_unless_told_otherwise():
    model, plain = network(), network()
    optimizers = [optim.SGD(m.parameters(), lr=0.1) for m in (model, plain)]
    regplug.attach(model, optimizers[0], ["weight_decay(0.3)"])
    for net, optimizer in zip((model, plain), optimizers, strict=True):
        train(net, optimizer, count=1)
    changed = {
        name
        for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed == {"0.weight", "3.weight"}


def test_each_group_has_its_own_learning_rate():
    model, written = network(), network()

    def groups(net):
        return [
            {"params": net[0].parameters(), "lr": 0.01},
            {"params": [*net[1].parameters(), *net[3].parameters()]},
        ]

    ours = optim.Adam(groups(model), lr=0.05)
    theirs = optim.AdamW(groups(written), lr=0.05, weight_decay=0.3)
    regplug.attach(model, ours, ["weight_decay(0.3, where='all')"])
    train(model, ours)
    train(written, theirs)
    assert same(model, written)


# Who takes part


def test_parameters_without_a_gradient_are_left_alone_and_zero_gradients_are_not():
    """As in AdamW, which decays zero-gradient parameters but not None-gradient ones."""
    models = [nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [
        optim.Adam(models[0].parameters(), lr=0.1),
        optim.AdamW(models[1].parameters(), lr=0.1, weight_decay=0.5),
    ]
    regplug.attach(models[0], optimizers[0], ["weight_decay(0.5, where='all')"])
    before = models[0][1].weight.detach().clone()
    for model, optimizer in zip(models, optimizers, strict=True):
        for w in model[0].parameters():
            w.grad = torch.zeros_like(w)
        optimizer.step()
    assert same(*models)
    assert torch.equal(models[0][1].weight, before)
    assert not torch.equal(models[0][0].weight, before)


# Where the optimizer decays already


def test_double_decay_is_an_error_that_names_the_ways_out():
    """AdamW decays by 0.01 unless told otherwise."""
    model = network()
    optimizer = optim.AdamW(model.parameters())
    message = (
        r"weight_decay: AdamW decays the parameters of group 0 already, by weight_decay=0\.01: "
        r".*weight_decay=0, .*existing='replace' .*existing='add'"
    )
    with pytest.raises(SpecError, match=message):
        regplug.attach(model, optimizer, ["weight_decay(0.1)"])
    assert optimizer.param_groups[0]["weight_decay"] == 0.01


def test_group_that_is_not_covered_may_decay_as_it_likes():
    model = network()
    biases = [w for w in model.parameters() if w.ndim == 1]
    weights = [w for w in model.parameters() if w.ndim == 2]
    groups = [{"params": weights, "weight_decay": 0}, {"params": biases, "weight_decay": 0.2}]
    optimizer = optim.AdamW(groups)
    with regplug.attach(model, optimizer, ["weight_decay(0.1, existing='replace')"]):
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0, 0.2]
    regplug.attach(model, optimizer, ["weight_decay(0.1)"])


def test_replace_takes_over_until_it_is_detached():
    model, written = network(), network()
    ours = optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.7)
    theirs = optim.AdamW(written.parameters(), lr=0.05, weight_decay=0.3)
    session = regplug.attach(model, ours, ["weight_decay(0.3, where='all', existing='replace')"])
    assert ours.param_groups[0]["weight_decay"] == 0
    assert "the update of AdamW itself" in session.describe()
    train(model, ours, count=4)
    train(written, theirs, count=4)
    session.detach()
    assert ours.param_groups[0]["weight_decay"] == 0.7
    theirs.param_groups[0]["weight_decay"] = 0.7
    train(model, ours, count=2)
    train(written, theirs, count=2)
    assert same(model, written)


def test_add_lets_both_act():
    model, written = network(torch.float64), network(torch.float64)
    ours = optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.2)
    theirs = optim.AdamW(written.parameters(), lr=0.05, weight_decay=0)
    regplug.attach(model, ours, ["weight_decay(0.3, where='all', existing='add')"])
    assert ours.param_groups[0]["weight_decay"] == 0.2
    train(model, ours)
    for x, y in batches(8, torch.float64):
        theirs.zero_grad()
        nn.functional.mse_loss(written(x), y).backward()
        with torch.no_grad():
            for w in written.parameters():
                w.mul_((1 - 0.05 * 0.3) * (1 - 0.05 * 0.2))
        theirs.step()
    for mine, its in zip(model.parameters(), written.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW])
def test_decays_of_two_sessions_on_one_optimizer_both_act(kind):
    model = nn.Linear(2, 2).double()
    before = model.weight.detach().clone()
    optimizer = kind(model.parameters(), lr=0.1, weight_decay=0)
    regplug.attach(model, optimizer, ["weight_decay(0.3, where='all')"])
    regplug.attach(model, optimizer, ["weight_decay(0.2, where='all')"], name="second")
    for _ in range(2):
        for w in model.parameters():
            w.grad = torch.zeros_like(w)
        optimizer.step()
        before *= (1 - 0.1 * 0.3) * (1 - 0.1 * 0.2)
    torch.testing.assert_close(model.weight.detach(), before, rtol=0, atol=1e-12)
    assert optimizer.param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize("existing", ["no", "", None, True, "Replace"])
def test_existing_is_one_of_three(existing):
    with pytest.raises(SpecError, match=f"existing must be one of error, .*got {existing!r}"):
        WeightDecay(0.1, existing=existing)


# Checkpoints of the optimizer


def saved(optimizer):
    """Return its state dict as it comes back from a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_loading_the_optimizers_state_does_not_bring_its_own_decay_back():
    """load_state_dict replaces the group dicts, and the values that were taken over with them."""
    model = network()
    optimizer = optim.AdamW(model.parameters(), weight_decay=0.25)
    before = saved(optimizer)
    session = regplug.attach(model, optimizer, ["weight_decay(0.1, existing='replace')"])
    optimizer.load_state_dict(before)
    assert optimizer.param_groups[0]["weight_decay"] == 0
    session.detach()
    assert optimizer.param_groups[0]["weight_decay"] == 0.25


def test_original_survives_a_state_that_was_saved_while_it_was_taken_over():
    """An original that is kept in a dead group dict is lost."""
    model = network()
    optimizer = optim.AdamW(model.parameters(), weight_decay=0.25)
    session = regplug.attach(model, optimizer, ["weight_decay(0.1, existing='replace')"])
    train(model, optimizer, count=1)
    optimizer.load_state_dict(saved(optimizer))
    assert optimizer.param_groups[0]["weight_decay"] == 0
    session.detach()
    assert optimizer.param_groups[0]["weight_decay"] == 0.25


def test_original_of_the_loaded_state_is_the_one_to_restore():
    model = network()
    optimizer = optim.AdamW(model.parameters(), weight_decay=0.25)
    other = copy.deepcopy(optimizer.state_dict())
    other["param_groups"][0]["weight_decay"] = 0.5
    session = regplug.attach(model, optimizer, ["weight_decay(0.1, existing='replace')"])
    optimizer.load_state_dict(other)
    assert optimizer.param_groups[0]["weight_decay"] == 0
    session.detach()
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_loading_a_state_that_decays_beside_the_plugin_is_an_error():
    model = network()
    optimizer = optim.AdamW(model.parameters(), weight_decay=0.25)
    state = saved(optimizer)
    optimizer.param_groups[0]["weight_decay"] = 0
    regplug.attach(model, optimizer, ["weight_decay(0.1)"])
    with pytest.raises(SpecError, match=r"already, by weight_decay=0\.25"):
        optimizer.load_state_dict(state)


def test_resumed_training_is_bit_equal():
    def run(stop):
        model = network()
        optimizer = optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.25)
        spec = "weight_decay(linear(0.4, 0.1, steps=6), existing='replace')"
        session = regplug.attach(model, optimizer, [spec])
        for step, (x, y) in enumerate(batches(6)):
            if step == stop:
                states = copy.deepcopy(model.state_dict()), saved(optimizer), session.state_dict()
                session.detach()
                model = network()
                optimizer = optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.25)
                session = regplug.attach(model, optimizer, [spec])
                for thing, state in zip((model, optimizer, session), states, strict=True):
                    thing.load_state_dict(state)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
        session.detach()
        assert optimizer.param_groups[0]["weight_decay"] == 0.25
        return model

    assert same(run(stop=3), run(stop=None))


def test_nothing_listens_to_the_optimizer_after_detach():
    model = network()
    optimizer = optim.AdamW(model.parameters(), weight_decay=0.25)
    state = saved(optimizer)
    regplug.attach(model, optimizer, ["weight_decay(0.1, existing='replace')"]).detach()
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["weight_decay"] == 0.25


# Halves


def test_decay_that_rounds_away_is_told_once():
    """1000 decays of 1e-4 on a bf16 weight change nothing: 1.0 instead of 0.905."""
    model = nn.Linear(4, 4, bias=False).bfloat16()
    nn.init.constant_(model.weight, 1.0)
    optimizer = optim.SGD(model.parameters(), lr=1e-3)
    regplug.attach(model, optimizer, ["weight_decay(0.1)"])
    model.weight.grad = torch.zeros_like(model.weight)
    with pytest.warns(UserWarning, match=r"weight_decay: lr·λ = 0\.0001 rounds away"):
        optimizer.step()
    for _ in range(10):
        optimizer.step()  # a second warning would be an error here
    assert torch.equal(model.weight, torch.ones_like(model.weight))


@pytest.mark.parametrize(
    ("dtype", "strength"), [(torch.bfloat16, 10.0), (torch.float16, 1.0), (torch.float32, 1e-3)]
)
def test_decay_that_acts_is_not_told(dtype, strength):
    model = nn.Linear(4, 4, bias=False).to(dtype)
    optimizer = optim.SGD(model.parameters(), lr=1e-2)
    regplug.attach(model, optimizer, [WeightDecay(strength)])
    before = model.weight.detach().clone()
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    assert (model.weight != before).all()
