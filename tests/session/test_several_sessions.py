"""Several sessions: of two models, of two optimizers, on one, and plugins of one name."""

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import (
    SpecError,
)
from regplug_builtins import L1, L2
from tests.session.small_loop import network


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


# What the loss event returns


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
