"""What the loss event returns: values, gradients of any order, and terms of other plugins."""

import pytest
import torch
from torch import nn

import regplug
from regplug import hookimpl
from regplug.errors import PluginError
from regplug_builtins import L1, L2, ElasticNet
from tests.delivery.written_out import (
    LR,
    PENALTIES,
    Net,
    data,
    gradient,
    objective,
    spec,
    value,
    weights_of,
)
from tests.helpers.compare import close


@pytest.mark.parametrize("count", [3, 40])  # looked at one by one, and joined
@pytest.mark.parametrize("kind", [L1(0.3), L2(0.2), ElasticNet(0.3, 0.2)], ids=lambda p: p.name)
def test_many_small_weights_in_the_loss_are_each_what_autograd_says(kind, count):
    """Weights that are worked on together are of one dtype and one sign; the rest go alone."""
    torch.manual_seed(0)
    shapes = [(2, 3), (5, 4), (1, 1), (200, 300)]  # the last is small, too, but not tiny
    model = nn.ParameterList(
        torch.randn(shapes[i % 4], dtype=torch.float64 if i % 5 else torch.float32)
        for i in range(count)
    )
    model[1].requires_grad_(False)
    groups = [
        {"params": list(model)[::2]},
        {"params": list(model)[1::2], "maximize": True},
    ]
    optimizer = torch.optim.SGD(groups, lr=LR)
    written = 0.0
    for group in groups:
        sign = -1.0 if group.get("maximize") else 1.0
        for w in group["params"]:
            if w.requires_grad:
                written = written + sign * kind.strength * kind.value(w).double()
    expected = torch.autograd.grad(written * 0.5, [w for w in model if w.requires_grad])
    with regplug.attach(model, optimizer, [kind]) as session:
        loss = session.loss(torch.zeros((), dtype=torch.float64, requires_grad=True) * 1.0)
        torch.testing.assert_close(loss, written)
        (loss * 0.5).backward()
    found = [w.grad for w in model if w.requires_grad]
    assert model[1].grad is None
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_terms_in_the_loss_follow_what_changes_about_the_parameters():
    """Which are worked on together is remembered, while they stay as they are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(3, 3))
    spec = "l1(piecewise({0: 0.5, 1: 2.0}), where='all', delivery='loss')"
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    session = regplug.attach(model, optimizer, [spec])

    def freeze(frozen):
        model[0].weight.requires_grad_(not frozen)

    def enlarge():
        model[1].weight.data = torch.randn(1500, 1500)

    changes = [
        lambda: None,
        lambda: freeze(True),
        lambda: freeze(False),
        model.double,
        model.bfloat16,
        model.float,
        enlarge,
        optimizer.step,
        lambda: None,
    ]
    for change in changes:
        change()
        optimizer.zero_grad()
        strength = 0.5 if session.steps == 0 else 2.0
        trained = [w for w in model.parameters() if w.requires_grad]
        loss = session.loss(torch.zeros((), dtype=torch.float64, requires_grad=True) * 1.0)
        expected = sum(strength * w.detach().double().abs().sum() for w in trained)
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-6, atol=0)
        loss.backward()
        for w in model.parameters():
            if w.requires_grad:
                torch.testing.assert_close(w.grad, strength * w.detach().sign())
            else:
                assert w.grad is None
        del loss  # whose graph knows the parameters' shapes


@pytest.mark.parametrize("ratio", [0.0, 1e-20, 1e-3, 1.0, 1e6, 1e13, 1e30])
def test_elastic_nets_strengths_may_be_far_apart(ratio):
    """Both go into one float, where they fit."""
    torch.manual_seed(0)
    w = torch.cat([torch.zeros(2), torch.randn(50), 1e3 * torch.randn(50)])
    l1, l2 = (0.3, 0.3 * ratio) if ratio < 1 else (0.3 / ratio, 0.3)
    g = torch.zeros_like(w)
    ElasticNet(l1, l2).add_gradients([g], [w], 0.5)
    expected = 0.5 * gradient(w.double(), l1, l2)
    torch.testing.assert_close(g.double(), expected, rtol=1e-6, atol=0)


# In the graph


@pytest.mark.parametrize("name", PENALTIES)
def test_gradcheck_and_gradgradcheck_through_the_loss(name):
    model = Net()
    with torch.no_grad():  # away from the kink
        model.second.weight[0, :3] = 0.5
    session = regplug.attach(model, plugins=[spec(name, "loss")])
    weights = tuple(weights_of(model))

    def penalized(*_):
        return session.loss(objective(model, *data()))

    assert torch.autograd.gradcheck(penalized, weights)
    assert torch.autograd.gradgradcheck(penalized, weights)


def test_gradient_penalty_differentiates_the_penalty_twice():
    """create_graph=True: ‖∇(loss + penalty)‖² and its gradient, by autograd from a formula."""
    model, written = Net(), Net()
    session = regplug.attach(model, plugins=[spec("elastic_net", "loss")])
    losses = [
        session.loss(objective(model, *data())),
        objective(written, *data()) + sum(value(w, 0.3, 0.2) for w in weights_of(written)),
    ]
    for net, loss in zip((model, written), losses, strict=True):
        first = torch.autograd.grad(loss, weights_of(net), create_graph=True)
        sum(g.square().sum() for g in first).backward()
    for ours, theirs in zip(weights_of(model), weights_of(written), strict=True):
        close(ours.grad, theirs.grad)


def test_formula_without_a_gradient_is_differentiated_twice_as_well():
    class Quartic(regplug.Penalty):
        separable = True

        def value(self, w):
            return w.pow(4).sum()

    model = Net()
    session = regplug.attach(model, plugins=[Quartic(0.3, delivery="loss")])
    loss = session.loss(torch.zeros((), dtype=torch.float64))
    (first,) = torch.autograd.grad(loss, model.second.weight, create_graph=True)
    w = model.second.weight
    close(first, 0.3 * 4 * w**3)
    (second,) = torch.autograd.grad(first.sum(), w)
    close(second, 0.3 * 12 * w.detach() ** 2)


def test_loss_has_no_gradient_under_no_grad():
    model = Net()
    session = regplug.attach(model, plugins=[spec("l2", "loss")])
    with torch.no_grad():
        total = session.loss(objective(model, *data()))
    assert not total.requires_grad
    terms = sum(value(w, 0.0, 0.2) for w in weights_of(model))
    close(total, (objective(model, *data()) + terms).detach())


def test_loss_may_be_scaled_and_passed_backward_twice():
    model, written = Net(), Net()
    session = regplug.attach(model, plugins=[spec("elastic_net", "loss")])
    total = 3 * session.loss(objective(model, *data())) + 1
    total.backward(retain_graph=True)
    total.backward()
    terms = sum(value(w, 0.3, 0.2) for w in weights_of(written))
    (6 * (objective(written, *data()) + terms)).backward()
    for ours, theirs in zip(model.parameters(), written.parameters(), strict=True):
        close(ours.grad, theirs.grad)


def test_penalty_alone_is_a_loss():
    model = Net()
    session = regplug.attach(model, plugins=[spec("l2", "loss")])
    session.loss(torch.zeros((), dtype=torch.float64)).backward()
    for w in weights_of(model):
        close(w.grad, 0.4 * w.detach())


# Terms that other plugins add to the loss


def test_plugin_may_add_any_scalar_to_the_loss():
    class Offset(regplug.Plugin):
        @hookimpl
        def on_loss(self, session, loss):
            return 0.5 * loss.detach() + session.model.first.bias.square().sum()

    model = Net()
    session = regplug.attach(model, plugins=[Offset(), spec("l2", "loss")])
    loss = objective(model, *data())
    total = session.loss(loss)
    bias = model.first.bias.detach()
    terms = bias.square().sum() + sum(value(w, 0, 0.2) for w in weights_of(model))
    close(total.detach(), (1.5 * loss + terms).detach())
    (gradient,) = torch.autograd.grad(total, model.first.bias, retain_graph=True)
    (data_gradient,) = torch.autograd.grad(loss, model.first.bias)
    close(gradient, data_gradient + 2 * bias)


@pytest.mark.parametrize("term", [0.5, "x", torch.zeros(3), torch.zeros(1), [torch.zeros(())]])
def test_term_that_is_no_scalar_tensor_is_an_error_naming_the_plugin(term):
    class Wrong(regplug.Plugin):
        @hookimpl
        def on_loss(self):
            return term

    model = Net()
    session = regplug.attach(model, plugins=["l2(0.1)", Wrong()])
    with pytest.raises(PluginError, match=r"wrong \(.*on_loss at step 0.*must return a 0-d tensor"):
        session.loss(objective(model, *data()))
