"""Decoupled decay to the starting point: beside optimizers, kept, and in halves and shards."""

import copy
import warnings

import pytest
import torch
from torch import nn, optim

import regplug
from regplug.errors import SpecError, StateError
from regplug_builtins import DecayToStart
from tests.helpers.compare import same

F64 = torch.float64


def net(dtype=F64, width=3):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2)).to(dtype)


def go_on(model, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for w in model.parameters():
            w.grad = torch.randn(w.shape, generator=generator, dtype=F64).to(w.dtype)
        optimizer.step()


def by_hand(optimizer_of, strength, steps, lr):
    """Return a model that is pulled to where it began by two lines in its loop."""
    model = net()
    optimizer = optimizer_of(model.parameters())
    start = [w.detach().clone() for w in model.parameters()]
    for step in steps:
        with torch.no_grad():
            for w, begun in zip(model.parameters(), start, strict=True):
                if w.ndim > 1:
                    w.sub_(lr * strength * (w - begun))
        go_on(model, optimizer, [step])
    return model


OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: optim.Adam(p, lr=0.1),
    "fused": lambda p: optim.Adam(p, lr=0.1, fused=True),
    "maximize": lambda p: optim.Adam(p, lr=0.1, maximize=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_is_two_lines_in_a_loop(optimizer):
    model = net()
    stepping = OPTIMIZERS[optimizer](model.parameters())
    with regplug.attach(model, stepping, ["decay_to_start(0.5)"]):
        go_on(model, stepping, range(4))
    wanted = by_hand(OPTIMIZERS[optimizer], 0.5, range(4), 0.1)
    torch.testing.assert_close(model.state_dict(), wanted.state_dict(), rtol=1e-13, atol=1e-15)


def test_it_does_not_pass_through_second_moments_as_l2_sp_does():
    """Adam divides the gradient of a penalty by its size, and pulls all weights alike."""
    models = {}
    for spec in ("decay_to_start(0.5)", "l2_sp(0.25, delivery='step')"):
        models[spec] = model = net()
        optimizer = optim.Adam(model.parameters(), lr=0.1)
        with regplug.attach(model, optimizer, [spec]):
            go_on(model, optimizer, range(4))
    assert not same(*models.values())


def test_adamw_is_refused_or_replaced():
    model = net()
    optimizer = optim.AdamW(model.parameters(), lr=0.1)
    with pytest.raises(SpecError, match=r"decay_to_start: AdamW decays .* existing='replace'"):
        regplug.attach(model, optimizer, ["decay_to_start(0.5)"])
    session = regplug.attach(model, optimizer, ["decay_to_start(0.5, existing='replace')"])
    assert optimizer.param_groups[0]["weight_decay"] == 0
    assert "replacing 0.01" in session.describe()
    assert optimizer.state_dict()["param_groups"][0]["weight_decay"] == 0.01
    go_on(model, optimizer, range(3))
    wanted = by_hand(OPTIMIZERS["Adam"], 0.5, range(3), 0.1)
    torch.testing.assert_close(model.state_dict(), wanted.state_dict(), rtol=1e-13, atol=1e-15)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["weight_decay"] == 0
    session.detach()
    assert optimizer.param_groups[0]["weight_decay"] == 0.01


def test_existing_add_leaves_the_optimizer_its_own():
    model = net()
    optimizer = optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.2)
    with regplug.attach(model, optimizer, ["decay_to_start(0.5, existing='add')"]):
        assert optimizer.param_groups[0]["weight_decay"] == 0.2
        go_on(model, optimizer, range(1))
    begun = net()
    theirs = optim.AdamW(begun.parameters(), lr=0.1, weight_decay=0.2)
    go_on(begun, theirs, range(1))
    assert same(model, begun)  # at the start there is nothing to pull


def test_a_resumed_run_is_pulled_to_where_it_began():
    whole = net()
    optimizer = optim.Adam(whole.parameters(), lr=0.1)
    session = regplug.attach(whole, optimizer, ["decay_to_start(0.5)"])
    go_on(whole, optimizer, range(2))
    again = net()
    again.load_state_dict(whole.state_dict())
    stepping = optim.Adam(again.parameters(), lr=0.1)
    stepping.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed = regplug.attach(again, stepping, ["decay_to_start(0.5)"])
    resumed.load_state_dict(session.state_dict())
    for model, each in ((whole, optimizer), (again, stepping)):
        go_on(model, each, range(2, 4))
    assert same(whole, again)


def test_a_state_of_other_weights_is_refused():
    sessions = []
    for width in (3, 5):
        model = net(width=width)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        sessions.append(regplug.attach(model, optimizer, ["decay_to_start(0.5)"]))
    with pytest.raises(StateError, match="anchors"):
        sessions[0].load_state_dict(sessions[1].state_dict())


def test_what_is_frozen_or_without_gradient_stays():
    model = net()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, ["decay_to_start(0.5)"]):
        for w in model.parameters():
            w.data.add_(1.0)
        model[2].weight.requires_grad_(False)
        before = [w.detach().clone() for w in model.parameters()]
        optimizer.step()
        assert all(torch.equal(w, old) for w, old in zip(model.parameters(), before, strict=True))


def test_halves_are_pulled_in_full_precision():
    model = net(torch.bfloat16)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    begun = model[0].weight.detach().clone()
    with regplug.attach(model, optimizer, [DecayToStart(0.5)]):
        model[0].weight.data.add_(1.0)
        moved = model[0].weight.detach().double()
        for w in model.parameters():
            w.grad = torch.zeros_like(w)
        optimizer.step()
    exact = moved - 0.05 * (moved - begun.double())
    assert torch.equal(model[0].weight.detach(), exact.to(torch.bfloat16))


def test_it_takes_strengths_by_pattern():
    model = net()
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, ["decay_to_start({'0.*': 0.5, '*': 0.5})"]):
        go_on(model, optimizer, range(4))
    wanted = by_hand(OPTIMIZERS["Adam"], 0.5, range(4), 0.1)
    torch.testing.assert_close(model.state_dict(), wanted.state_dict(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("kernels", ["numba", "foreach"])
def test_large_weights_are_pulled_by_one_kernel(kernels):
    if kernels == "numba":
        pytest.importorskip("numba")
    model = net(torch.float32, width=20_000)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    begun = model[0].weight.detach().clone()
    with regplug.attach(model, optimizer, [DecayToStart(0.5)], kernels=kernels) as session:
        model[0].weight.data.mul_(3.0)
        moved = model[0].weight.detach().clone()
        for w in model.parameters():
            w.grad = torch.zeros_like(w)
        optimizer.step()
        assert ("in one kernel (numba)" in session.describe()) is (kernels == "numba")
    exact = moved - 0.05 * (moved - begun)
    torch.testing.assert_close(model[0].weight.detach(), exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_pull_that_rounds_away_in_halves_is_told_once(dtype):
    model = net(dtype)
    optimizer = optim.SGD(model.parameters(), lr=1e-3)
    with regplug.attach(model, optimizer, ["decay_to_start(0.01)"]), warnings.catch_warnings():
        warnings.simplefilter("error")
        if dtype != torch.float32:
            with pytest.warns(UserWarning, match=r"decay_to_start: lr·λ = 1e-05 rounds away in"):
                go_on(model, optimizer, [0])
        go_on(model, optimizer, [1, 2])


def test_of_parts_in_halves_the_one_that_rounds_away_is_told():
    model = net()
    model[2].to(torch.bfloat16)
    optimizer = optim.SGD(model.parameters(), lr=1e-3)
    with (
        regplug.attach(model, optimizer, ["decay_to_start({'2.*': 0.01, '*': 0.5})"]),
        pytest.warns(UserWarning, match=r"lr·λ = 1e-05 rounds away in torch\.bfloat16"),
    ):
        go_on(model, optimizer, [0])
