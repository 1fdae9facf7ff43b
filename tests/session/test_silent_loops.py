"""Loops in which plugins are attached and nothing acts are told so, once; others never."""

import warnings

import pytest
import torch
from torch import nn

import regplug
from regplug import hookimpl
from regplug.schedules import linear, piecewise
from regplug_builtins import L1, L2SP, Activity


def rig(plugins, kind=torch.optim.SGD, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    optimizer = kind(model.parameters(), lr=0.01)
    return model, optimizer, regplug.attach(model, optimizer, plugins, **options)


def loss_of(model):
    return model(torch.ones(2, 3)).square().sum()


def step(model, optimizer, session=None, count=1, passes=1):
    for _ in range(count):
        optimizer.zero_grad()
        for _ in range(passes):
            loss = loss_of(model)
            (loss if session is None else session.loss(loss)).backward()
        optimizer.step()


def told(loop):
    """Return what the loop is told."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop()
    return [str(warning.message) for warning in caught]


class AddsToLoss(regplug.Plugin):
    """Acts in the loss event alone."""

    @hookimpl
    def on_loss(self, session):
        return session.model[0].bias.square().sum()


# Loops that stop calling session.loss, or never do


@pytest.mark.parametrize(
    "plugin",
    [
        lambda: L1(0.1),
        lambda: L1(0.1, delivery="loss"),
        lambda: L2SP(0.1, delivery="loss"),
        lambda: Activity(0.1),
        AddsToLoss,
    ],
)
def test_a_loop_that_stops_calling_the_loss_event_is_told_once(plugin):
    plugin = plugin()
    model, optimizer, session = rig([plugin])
    step(model, optimizer, session, count=3)
    assert "session.loss" not in session.describe()
    words = told(lambda: step(model, optimizer, count=100))
    assert len(words) == 1
    assert plugin.name in words[0]
    assert "steps came without session.loss" in words[0]
    assert "loss = session.loss(loss)" in words[0]
    assert "the last 100 steps came without session.loss" in session.describe()
    assert told(session.detach) == []


def test_a_short_loop_that_stops_calling_it_is_told_when_it_ends():
    model, optimizer, session = rig(["l1(0.1)"])
    step(model, optimizer, session, count=3)
    assert told(lambda: step(model, optimizer, count=10)) == []
    (words,) = told(session.detach)
    assert "l1 of regplug acts in the loss, and the last 10 steps came" in words
    assert told(session.detach) == []


@pytest.mark.parametrize("steps", [1, 50])
def test_a_plugin_for_the_loss_event_alone_in_a_loop_that_never_fires_it_is_told(steps):
    model, optimizer, session = rig([AddsToLoss(), "l2(0.1)"])
    (words,) = told(lambda: (step(model, optimizer, count=steps), session.detach()))
    assert "adds_to_loss of regplug acts in the loss" in words
    assert "l2" not in words


def test_a_loop_that_raises_is_not_told_beside_it():
    def loop():
        with session:
            step(model, optimizer)
            _ = 1 / 0

    def raises():
        with pytest.raises(ZeroDivisionError):
            loop()

    model, optimizer, session = rig([AddsToLoss()])
    assert told(raises) == []


# Optimizers that are replaced


def test_an_optimizer_that_was_replaced_is_told_by_passes_through_the_loss():
    model, optimizer, session = rig(["l1(0.1)", "weight_decay(0.1)"])
    step(model, optimizer, session, count=3)
    other = torch.optim.SGD(model.parameters(), lr=0.01)
    words = told(lambda: step(model, other, session, count=600))
    assert len(words) == 1
    assert "SGD" in words[0]
    assert "nothing acts at the step" in words[0]
    assert "attach again" in words[0]
    assert "nothing acts at the step" in session.describe()


def test_weights_changed_through_data_are_seen_too():
    model, _, session = rig(["weight_decay(0.1)"])

    def loop():
        for _ in range(300):
            model.zero_grad()
            session.loss(loss_of(model)).backward()
            for w in model.parameters():
                w.data.add_(w.grad, alpha=-0.01)

    (words,) = told(loop)
    assert "no step was seen" in words


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("ask", ["metrics", "detach"])
def test_an_optimizer_that_was_replaced_is_told_when_somebody_asks(kind, ask):
    model, optimizer, session = rig(["l2(0.1)"], kind=torch.optim.SGD)
    step(model, optimizer, count=3)
    other = kind(model.parameters(), lr=0.01)
    assert told(lambda: step(model, other, count=20)) == []
    assert "nothing acts at the step any more" in session.describe()
    (words,) = told(getattr(session, ask))
    assert "changed by others since its last step" in words
    assert told(session.metrics) == told(session.detach) == []


def test_an_optimizer_that_never_stepped_is_told_when_somebody_asks():
    model, _, session = rig(["l2(0.1)"])
    other = torch.optim.SGD(model.parameters(), lr=0.01)
    step(model, other, count=20)
    (words,) = told(session.metrics)
    assert "no step was seen" in words


# No false alarm


def accumulating(model, optimizer, session):
    step(model, optimizer, session, count=1, passes=700)
    step(model, optimizer, session, count=2, passes=300)


def evaluating(model, optimizer, session):
    step(model, optimizer, session, count=2)
    with torch.no_grad():
        for _ in range(400):
            session.loss(loss_of(model))
    for _ in range(400):  # with grad on, as it is forgotten
        session.loss(loss_of(model))
    step(model, optimizer, session, count=2)


def skipping(model, optimizer, session):
    """Steps without a gradient, as after an overflow."""
    for turn in range(400):
        loss = session.loss(loss_of(model))
        optimizer.zero_grad()
        if turn % 150 == 0:
            loss.backward()
        optimizer.step()


def lazily(model, optimizer, session):
    """A penalty in every 16th step alone, as StyleGAN2 has it."""
    for turn in range(100):
        step(model, optimizer, session if turn % 16 == 0 else None)


def clamping(model, optimizer, session):
    for _ in range(100):
        step(model, optimizer, session)
        with torch.no_grad():
            for w in model.parameters():
                for _ in range(5):
                    w.clamp_(-1, 1)
        session.metrics()


def reloading(model, optimizer, session):
    step(model, optimizer, session, count=2)
    for _ in range(10):
        model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
        session.metrics()


@pytest.mark.parametrize("loop", [accumulating, evaluating, skipping, lazily, clamping, reloading])
@pytest.mark.parametrize("plugin", ["l1(0.1)", "l1(0.1, delivery='loss')"])
def test_usual_loops_are_not_told(loop, plugin):
    model, optimizer, session = rig([plugin, "weight_decay(0.1)"])
    assert told(lambda: (loop(model, optimizer, session), session.detach())) == []


def test_line_searches_are_not_told():
    model = nn.Linear(3, 1)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=400, tolerance_grad=0, lr=1e-3, tolerance_change=0
    )
    session = regplug.attach(model, optimizer, ["l2(0.01)"])

    def closure():
        optimizer.zero_grad()
        loss = session.loss(model(torch.ones(4, 3)).square().mean())
        loss.backward()
        return loss

    assert told(lambda: (optimizer.step(closure), optimizer.step(closure), session.detach())) == []


def test_sessions_of_a_gan_of_which_one_is_called_are_not_told():
    models = [nn.Linear(3, 3), nn.Linear(3, 1)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in models]
    sessions = [
        regplug.attach(m, o, ["l1(0.1)"], name=name)
        for m, o, name in zip(models, optimizers, ["generator", "critic"], strict=True)
    ]

    def loop():
        for _ in range(60):
            for _ in range(5):
                models[1].zero_grad()
                sessions[1].loss(models[1](models[0](torch.ones(2, 3))).mean()).backward()
                optimizers[1].step()
            models[0].zero_grad()
            models[1](models[0](torch.ones(2, 3))).mean().backward()
            optimizers[0].step()
        for session in sessions:
            session.metrics()
            session.detach()

    assert told(loop) == []


def test_strengths_of_zero_and_deliveries_at_the_step_are_not_told():
    plugins = [
        L1(piecewise({0: 0.1, 3: 0.0}), delivery="loss"),
        "l2(0.1, delivery='step')",
        L2SP(linear(0, 1, steps=9), delivery="proximal"),
    ]
    model, optimizer, session = rig(plugins)
    step(model, optimizer, session, count=3)
    assert told(lambda: (step(model, optimizer, count=100), session.detach())) == []


def test_sessions_for_the_loss_alone_are_not_told():
    """No optimizer is attached, and the penalty in the loss is all that is wanted."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    session = regplug.attach(model, plugins=["l1(0.1)"])
    other = torch.optim.SGD(model.parameters(), lr=0.01)
    assert told(lambda: (step(model, other, session, count=50), session.metrics())) == []
    assert told(session.detach) == []
