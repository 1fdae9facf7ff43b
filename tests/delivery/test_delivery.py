"""How penalties reach the weights: each delivery against gradients and updates written out."""

import copy
import math
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

import regplug
from regplug import hookimpl
from regplug.backend.blocks import BLOCK
from regplug.errors import PluginError, RegplugError, SpecError, UnsupportedError
from regplug.schedules import linear
from regplug_builtins import L1, L2, ElasticNet

# λ₁·Σ|w| + λ₂·Σw² covers all three.
PENALTIES = {
    "l1": ("0.3", 0.3, 0.0),
    "l2": ("0.2", 0.0, 0.2),
    "elastic_net": ("0.3, 0.2", 0.3, 0.2),
}
LR = 0.05


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 3, bias=False)
        self.double()
        with torch.no_grad():
            self.second.weight[0, :3] = 0.0  # where L1 has a kink

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def data(count=8):
    generator = torch.Generator().manual_seed(2)
    shape = {"generator": generator, "dtype": torch.float64}
    return torch.randn(count, 4, **shape), torch.randn(count, 3, **shape)


def objective(model, x, y):
    return (model(x) - y).square().mean()


def value(w, l1, l2):
    """Return λ₁·Σ|w| + λ₂·Σw², written out."""
    return l1 * w.abs().sum() + l2 * (w * w).sum()


def gradient(w, l1, l2):
    return l1 * w.sign() + 2 * l2 * w


def proximal(w, step, l1, l2):
    return w.sign() * (w.abs() - step * l1).clamp(min=0) / (1 + 2 * step * l2)


def spec(name, delivery, **more):
    return f"{name}({PENALTIES[name][0]}, delivery='{delivery}'{more.get('more', '')})"


def exactly(ours, theirs, atol=1e-12):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def weights_of(model):
    return [w for w in model.parameters() if w.ndim == 2]


@pytest.fixture
def reference():
    """Return a copy of the model, its gradients of the data loss alone, and its weights."""
    model = Net()
    objective(model, *data()).backward()
    return model


# Each delivery against what is written out


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("delivery", ["step", "loss", "proximal"])
@pytest.mark.parametrize("maximize", [False, True])
def test_one_step_is_what_is_written_out(reference, name, delivery, maximize):
    """Under maximize=True the penalties still shrink the weights."""
    _, l1, l2 = PENALTIES[name]
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, maximize=maximize)
    session = regplug.attach(model, optimizer, [spec(name, delivery)])
    sign = -1 if maximize else 1
    session.loss(sign * objective(model, *data())).backward()
    optimizer.step()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        w, g = theirs.detach(), theirs.grad
        if w.ndim == 1:  # a bias
            expected = w - LR * g
        elif delivery == "proximal":
            expected = proximal(w - LR * g, LR, l1, l2)
        else:
            expected = w - LR * (g + gradient(w, l1, l2))
        exactly(ours.detach(), expected)


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("maximize", [False, True])
def test_gradient_in_the_loss_is_what_is_written_out(reference, name, maximize):
    _, l1, l2 = PENALTIES[name]
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, maximize=maximize)
    session = regplug.attach(model, optimizer, [spec(name, "loss")])
    loss = objective(model, *data())
    total = session.loss(loss)
    sign = -1 if maximize else 1
    terms = sum(value(w, l1, l2) for w in weights_of(reference))
    exactly(total.detach(), loss.detach() + sign * terms.detach())
    total.backward()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        added = gradient(theirs.detach(), l1, l2) if theirs.ndim == 2 else 0
        exactly(ours.grad, theirs.grad + sign * added)


@pytest.mark.parametrize("name", PENALTIES)
def test_gradient_in_the_loss_is_that_of_autograd(name):
    _, l1, l2 = PENALTIES[name]
    model, written = Net(), Net()
    session = regplug.attach(model, plugins=[spec(name, "loss")])
    session.loss(objective(model, *data())).backward()
    (objective(written, *data()) + sum(value(w, l1, l2) for w in weights_of(written))).backward()
    for ours, theirs in zip(model.parameters(), written.parameters(), strict=True):
        exactly(ours.grad, theirs.grad)


@pytest.mark.parametrize("delivery", ["step", "loss", "proximal"])
def test_several_penalties_add_up(reference, delivery):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    specs = [f"l1(0.3, delivery='{delivery}')", f"l2(0.2, where='first.*', delivery='{delivery}')"]
    session = regplug.attach(model, optimizer, specs)
    session.loss(objective(model, *data())).backward()
    optimizer.step()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        w, g = theirs.detach(), theirs.grad
        l1, l2 = 0.3 * (w.ndim == 2), 0.2 * name.startswith("first")
        if delivery == "proximal":  # one after the other, in the order of the list
            expected = proximal(proximal(w - LR * g, LR, l1, 0), LR, 0, l2)
        else:
            expected = w - LR * (g + gradient(w, l1, l2))
        exactly(ours.detach(), expected)


@pytest.mark.parametrize("delivery", ["step", "loss", "proximal"])
def test_scheduled_strengths_are_those_of_each_step(delivery):
    model, written = Net(), Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    schedule = linear(0.4, 0.1, steps=3)
    session = regplug.attach(model, optimizer, [ElasticNet(schedule, 0.2, delivery=delivery)])
    for step in range(5):
        optimizer.zero_grad()
        session.loss(objective(model, *data())).backward()
        optimizer.step()
        written.zero_grad()
        objective(written, *data()).backward()
        l1 = 0.4 + (0.1 - 0.4) * min(step / 3, 1)
        with torch.no_grad():
            for w in written.parameters():
                if w.ndim == 1:
                    w.sub_(LR * w.grad)
                elif delivery == "proximal":
                    w.copy_(proximal(w - LR * w.grad, LR, l1, 0.2))
                else:
                    w.sub_(LR * (w.grad + gradient(w, l1, 0.2)))
    for ours, theirs in zip(model.parameters(), written.parameters(), strict=True):
        exactly(ours.detach(), theirs.detach())


def test_weights_larger_than_a_block_and_of_any_layout():
    """Pieces are cut from flat weights, transposed ones and channels-last ones."""
    model = nn.ParameterList(
        [
            torch.randn(1300, 900, dtype=torch.float64),
            torch.randn(900, 1300, dtype=torch.float64).t(),
            torch.randn(3, 80, 70, 70, dtype=torch.float64).to(memory_format=torch.channels_last),
            torch.randn(5, 3, dtype=torch.float64),
        ]
    )
    assert sum(w.numel() > BLOCK for w in model) == 3
    before = [w.detach().clone() for w in model]
    for delivery in ("step", "loss", "proximal"):
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        with regplug.attach(model, optimizer, [spec("elastic_net", delivery)]) as session:
            if delivery == "loss":
                optimizer.zero_grad()
                session.loss(sum(w.sum() for w in model)).backward()
            else:  # gradients of a layout that is not their weights'
                for w in model:
                    w.grad = torch.ones(w.shape, dtype=w.dtype)
            optimizer.step()
        with torch.no_grad():
            for w, start in zip(model, before, strict=True):
                if delivery == "proximal":
                    expected = proximal(start - LR, LR, 0.3, 0.2)
                else:
                    expected = start - LR * (1 + gradient(start, 0.3, 0.2))
                exactly(w.detach(), expected)
                w.copy_(start)


def test_l2_is_sgds_own_weight_decay_of_twice_the_strength():
    """Several meanings of weight decay are alive; l2 has no ½ and is the coupled one."""
    model, written = Net(), Net()
    ours = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    theirs = torch.optim.SGD(written.parameters(), lr=LR, momentum=0.9, weight_decay=0.25)
    regplug.attach(model, ours, ["l2(0.125, where='all')"])
    for _ in range(5):
        for net, optimizer in ((model, ours), (written, theirs)):
            optimizer.zero_grad()
            objective(net, *data()).backward()
            optimizer.step()
    for mine, its in zip(model.parameters(), written.parameters(), strict=True):
        exactly(mine.detach(), its.detach())


def test_step_delivery_needs_no_scratch_of_the_models_size():
    """A temporary of the model's size costs page faults: many times the memory traffic."""
    model = nn.Linear(2048, 1024, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    model.weight.grad = torch.zeros_like(model.weight)
    for delivery in ("step", "proximal"):
        with (
            regplug.attach(model, optimizer, [spec("l1", delivery)]),
            torch.profiler.profile(profile_memory=True, acc_events=True) as profile,
        ):
            optimizer.step()
        largest = max(event.self_cpu_memory_usage for event in profile.events())
        assert largest <= 1 << 22, f"{delivery}: {largest} bytes of the model's {2 << 22}"


# Minor page faults of a few steps, once everything is warm, in a process that has freed nothing
# large before. A tensor of a mebibyte is 250 pages.
FAULTS = """
import resource, sys
import torch
import regplug

torch.set_num_threads(1)
model = torch.nn.ParameterList(torch.randn(500, 500) for _ in range(20))
optimizer = getattr(torch.optim, sys.argv[1])(model.parameters(), lr=1e-3)
for w in model:
    w.grad = torch.ones_like(w)
session = regplug.attach(model, optimizer, [sys.argv[2]])
one = torch.ones((), requires_grad=True)
counts = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    session.loss(one * 1.0).backward()
    optimizer.step()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(counts[3:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")
@pytest.mark.parametrize(
    ("optimizer", "plugin"),
    [
        ("SGD", "l1(1e-4, delivery='step')"),
        ("SGD", "elastic_net(1e-4, 1e-4, delivery='step')"),
        ("SGD", "l1(1e-4, delivery='loss')"),
        ("SGD", "l2_sp(1e-4, delivery='step')"),
    ],
)
def test_temporaries_of_a_block_cost_no_page_faults(optimizer, plugin):
    """Each one mapped anew makes a step five to twenty times as dear: 5,000 faults here."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, optimizer, plugin],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert int(done.stdout) < 500


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


@pytest.mark.parametrize("delivery", ["step", "loss"])
@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("size", [2, 200, 1100])
def test_gradient_of_another_shape_is_an_error_naming_the_plugin(delivery, separable, size):
    """Autograd's own words name no plugin, and a broadcast would pass unseen."""

    class Odd(regplug.Penalty):
        def value(self, w):
            return w.sum()

        def gradient(self, w):
            return torch.ones(())

    Odd.separable = separable
    model = Net()
    model.big = nn.Parameter(torch.zeros(size, size))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [Odd(0.5, where="big", delivery=delivery)]) as session:

        def step():
            session.loss(objective(model, *data()) + model.big.sum()).backward()
            optimizer.step()

        with pytest.raises(PluginError, match=r"^odd \(\w+\) failed in .* must be shaped like w"):
            step()


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


# What "auto" becomes


def train(model, optimizer, session=None, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = objective(model, *data())
        if session is not None:
            loss = session.loss(loss)
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("through", [True, False])
def test_auto_is_the_loss_if_gradients_came_through_it_and_else_the_step(through):
    models, descriptions = [], []
    for delivery in ("auto", "loss" if through else "step"):
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        session = regplug.attach(model, optimizer, [spec("l1", delivery)])
        assert f" {delivery} " in session.describe()
        train(model, optimizer, session if through else None, steps=3)
        models.append(model)
        descriptions.append(session.describe())
    for ours, theirs in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(ours, theirs)
    assert ("loss (auto)" if through else "step (auto)") in descriptions[0]


def test_auto_is_settled_once():
    model, written = Net(), Net()
    optimizers = [torch.optim.SGD(m.parameters(), lr=LR) for m in (model, written)]
    session = regplug.attach(model, optimizers[0], ["l1(0.3)"])
    regplug.attach(written, optimizers[1], ["l1(0.3, delivery='step')"])
    train(model, optimizers[0])
    train(model, optimizers[0], session)  # from now on it adds nothing to the loss
    train(written, optimizers[1], steps=2)
    for ours, theirs in zip(model.parameters(), written.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert "step (auto)" in session.describe()


def test_loss_that_is_only_looked_at_settles_nothing():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, ["l1(0.3)"])
    session.loss(objective(model, *data()))  # for a log, say
    with torch.no_grad():
        session.loss(objective(model, *data()))
    train(model, optimizer)
    assert "step (auto)" in session.describe()


def test_where_nothing_is_added_the_loss_itself_comes_back_and_nothing_is_left_on_it():
    """At strength 0: its backward pass is one through the loss event, but no later one is."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, ["l1(0)"])
    loss = objective(model, *data())
    assert session.loss(loss) is loss
    assert not session.gradients_through_loss
    loss.backward(retain_graph=True)
    assert session.gradients_through_loss
    assert not loss._backward_hooks


def test_auto_settles_by_the_loop_also_where_the_strength_starts_at_zero():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, ["l1(linear(0, 1, steps=2))"])
    train(model, optimizer, session, steps=2)
    assert "loss (auto)" in session.describe()
    session.detach()
    session = regplug.attach(model, optimizer, session.plugins)
    train(model, optimizer, steps=1)
    assert "step (auto)" in session.describe()


def test_penalty_pinned_to_the_loss_whose_loop_never_calls_it_is_an_error():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, ["l1(0.3, delivery='loss')"])
    before = copy.deepcopy(model.state_dict())
    message = r"l1 \(regplug .* at step 0.*`loss = session.loss\(loss\)` before.*delivery='step'"
    with pytest.raises(RegplugError, match=message):
        train(model, optimizer)
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())
    train(model, optimizer, session)
    assert session.steps == 1


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
        exactly(ours.grad, theirs.grad)


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
    exactly(first, 0.3 * 4 * w**3)
    (second,) = torch.autograd.grad(first.sum(), w)
    exactly(second, 0.3 * 12 * w.detach() ** 2)


def test_loss_has_no_gradient_under_no_grad():
    model = Net()
    session = regplug.attach(model, plugins=[spec("l2", "loss")])
    with torch.no_grad():
        total = session.loss(objective(model, *data()))
    assert not total.requires_grad
    terms = sum(value(w, 0.0, 0.2) for w in weights_of(model))
    exactly(total, (objective(model, *data()) + terms).detach())


def test_loss_may_be_scaled_and_passed_backward_twice():
    model, written = Net(), Net()
    session = regplug.attach(model, plugins=[spec("elastic_net", "loss")])
    total = 3 * session.loss(objective(model, *data())) + 1
    total.backward(retain_graph=True)
    total.backward()
    terms = sum(value(w, 0.3, 0.2) for w in weights_of(written))
    (6 * (objective(written, *data()) + terms)).backward()
    for ours, theirs in zip(model.parameters(), written.parameters(), strict=True):
        exactly(ours.grad, theirs.grad)


def test_penalty_alone_is_a_loss():
    model = Net()
    session = regplug.attach(model, plugins=[spec("l2", "loss")])
    session.loss(torch.zeros((), dtype=torch.float64)).backward()
    for w in weights_of(model):
        exactly(w.grad, 0.4 * w.detach())


# Accumulation and clipping


@pytest.mark.parametrize(
    ("delivery", "divide", "times"),
    [("step", False, 1), ("step", True, 1), ("loss", False, 4), ("loss", True, 1)],
)
def test_accumulation_multiplies_what_is_in_the_loss_and_not_what_is_added_at_the_step(
    delivery, divide, times
):
    model, written = Net(), Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, [spec("l1", delivery)])
    x, y = data()
    for part in range(4):
        micro = slice(2 * part, 2 * part + 2)
        loss = session.loss(objective(model, x[micro], y[micro]))
        (loss / 4 if divide else loss).backward()
    optimizer.step()
    assert session.steps == 1
    factor = 1 if divide else 4  # the mean over micro-batches, or their sum
    (factor * objective(written, x, y)).backward()
    for ours, theirs in zip(model.parameters(), written.parameters(), strict=True):
        added = times * 0.3 * theirs.detach().sign() if theirs.ndim == 2 else 0
        exactly(ours.detach(), theirs.detach() - LR * (theirs.grad + added))


@pytest.mark.parametrize("delivery", ["step", "loss", "proximal"])
def test_clipping_weakens_what_is_in_the_loss_and_not_what_is_added_after_it(delivery):
    """A data gradient of norm over 1000 clipped to 1: an in-loss L1 acts at a thousandth."""
    model, written = Net(), Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, [spec("l1", delivery)])

    def loud(net):
        return 10_000 * objective(net, *data())

    session.loss(loud(model)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()

    weights = weights_of(written)
    terms = sum(value(w, 0.3, 0.0) for w in weights) if delivery == "loss" else 0
    (loud(written) + terms).backward()
    norm = torch.nn.utils.clip_grad_norm_(written.parameters(), 1.0)
    assert norm > 1000
    for ours, theirs in zip(model.parameters(), written.parameters(), strict=True):
        w, g = theirs.detach(), theirs.grad
        if w.ndim == 2 and delivery == "proximal":
            expected = proximal(w - LR * g, LR, 0.3, 0)
        elif w.ndim == 2 and delivery == "step":
            expected = w - LR * (g + 0.3 * w.sign())
        else:
            expected = w - LR * g
        exactly(ours.detach(), expected)


# Closures


def minimize(net, optimizer, loss_of, steps):
    values = []
    for _ in range(steps):

        def closure():
            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            return loss

        values.append(optimizer.step(closure).item())
    return values


@pytest.mark.parametrize("delivery", ["step", "loss", "auto"])
@pytest.mark.parametrize("line_search", ["strong_wolfe", None])
def test_lbfgs_takes_the_very_steps_it_takes_on_the_written_out_objective(delivery, line_search):
    """LBFGS calls the closure many times and line-searches on the value that it returns."""
    model, written = Net(), Net()
    settings = {"lr": 0.5, "max_iter": 8, "line_search_fn": line_search}
    ours = torch.optim.LBFGS(model.parameters(), **settings)
    theirs = torch.optim.LBFGS(written.parameters(), **settings)
    session = regplug.attach(model, ours, [spec("elastic_net", delivery)])
    in_loss = delivery == "loss"
    seen = minimize(
        model,
        ours,
        lambda: (session.loss if in_loss else lambda loss: loss)(objective(model, *data())),
        steps=4,
    )
    expected = minimize(
        written,
        theirs,
        lambda: objective(written, *data()) + sum(value(w, 0.3, 0.2) for w in weights_of(written)),
        steps=4,
    )
    assert seen == pytest.approx(expected, rel=1e-12)
    for mine, its in zip(model.parameters(), written.parameters(), strict=True):
        exactly(mine.detach(), its.detach(), atol=1e-10)


@pytest.mark.parametrize("delivery", ["step", "loss"])
def test_closure_of_other_optimizers_returns_the_penalized_value(delivery):
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, [spec("elastic_net", delivery), "weight_decay(0.5)"])
    terms = sum(value(w.detach(), 0.3, 0.2) for w in weights_of(model))
    plain = objective(model, *data()).detach()

    def loss():
        return (session.loss if delivery == "loss" else lambda x: x)(objective(model, *data()))

    (seen,) = minimize(model, optimizer, loss, steps=1)
    # Of the weights before they are decayed: those at which the gradient was taken.
    assert seen == pytest.approx((plain + terms).item(), rel=1e-12)


@pytest.mark.parametrize("returned", [None, 1.5, 2])
def test_closure_may_return_what_is_no_tensor(returned):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, ["l1(0.3)"])
    terms = sum(value(w.detach(), 0.3, 0.0) for w in weights_of(model)).item()

    def closure():
        objective(model, *data()).backward()
        return returned

    seen = optimizer.step(closure)
    assert seen == (None if returned is None else pytest.approx(returned + terms))
    assert session.steps == 1


def test_adam_with_a_closure_and_weight_decay_is_adamw_with_a_closure():
    model, written = Net(), Net()
    ours = torch.optim.Adam(model.parameters(), lr=LR)
    theirs = torch.optim.AdamW(written.parameters(), lr=LR, weight_decay=0.3)
    regplug.attach(model, ours, ["weight_decay(0.3, where='all')"])
    minimize(model, ours, lambda: objective(model, *data()), steps=6)
    minimize(written, theirs, lambda: objective(written, *data()), steps=6)
    for mine, its in zip(model.parameters(), written.parameters(), strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("spec", ["weight_decay(0.1)", "l1(0.1, delivery='proximal')"])
def test_lbfgs_refuses_what_changes_weights_behind_its_back(spec):
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(UnsupportedError, match=r"changes weights .*LBFGS, whose line search"):
        regplug.attach(model, optimizer, [spec])


def test_lbfgs_takes_a_plugin_that_only_watches():
    class Watch(regplug.Plugin):
        changes_weights = False
        seen = 0

        @hookimpl
        def after_step(self, session):
            self.seen += 1

    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    watch = Watch()
    regplug.attach(model, optimizer, [watch])
    minimize(model, optimizer, lambda: objective(model, *data()), steps=2)
    assert watch.seen == 2


# Formulas of others


class GroupNorm(regplug.Penalty):
    """Σ over rows of ‖w_i‖, which is not separable."""

    def value(self, w):
        return w.norm(dim=1).sum()


@pytest.mark.parametrize("delivery", ["step", "loss"])
def test_formula_that_is_not_separable_and_has_no_gradient_of_its_own(delivery):
    model = nn.Linear(3, 4).double()
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, [GroupNorm(0.3, delivery=delivery)])
    total = session.loss((0 * model(torch.ones(1, 3).double())).sum())
    if delivery == "loss":
        exactly(total.detach(), 0.3 * before.norm(dim=1).sum())
    total.backward()
    optimizer.step()
    exactly(model.weight.detach(), before - LR * 0.3 * before / before.norm(dim=1, keepdim=True))
    metric = 0.3 * model.weight.norm(dim=1).sum().item()
    assert session.metrics()["group_norm/value"] == pytest.approx(metric)


def test_penalty_without_a_proximal_operator_says_so():
    with pytest.raises(SpecError, match="delivery='proximal': GroupNorm has no proximal operator"):
        GroupNorm(0.1, delivery="proximal")


@pytest.mark.parametrize("delivery", ["step", "loss"])
def test_value_that_is_no_scalar_is_an_error_naming_the_plugin(delivery):
    class Rows(regplug.Penalty):
        def value(self, w):
            return w.norm(dim=1)

    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, [Rows(0.3, delivery=delivery)])

    def step():
        session.loss(model(torch.ones(1, 3)).sum()).backward()
        optimizer.step()

    message = r"rows \(test_delivery\) failed in on_(loss|gradients) at step 0: .*(0-d|scalar)"
    with pytest.raises(PluginError, match=message):
        step()


# Halves


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_of_halves_accumulate_in_float32(dtype):
    """p.half().abs().sum() over a million times 0.1 is inf."""
    model = nn.Linear(1000, 1000, bias=False).to(dtype)
    nn.init.constant_(model.weight, 0.1)
    exact = model.weight.detach().double()
    for session, expected in (
        (regplug.attach(model, plugins=["l1(1)"]), exact.sum().item()),
        (regplug.attach(model, plugins=["l2(1)"]), exact.square().sum().item()),
    ):
        (metric,) = (v for key, v in session.metrics().items() if key.endswith("/value"))
        assert metric == pytest.approx(expected, rel=1e-5)
        total = session.loss(torch.zeros((), dtype=torch.float32))
        assert total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_strength_that_rounds_away_in_halves_is_told_once(dtype):
    model = nn.Linear(20, 20, bias=False).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    regplug.attach(model, optimizer, ["l1(1e-5)"])
    model.weight.grad = torch.ones_like(model.weight)
    with pytest.warns(UserWarning, match="l1: most of what it adds rounds away"):
        optimizer.step()
    optimizer.step()  # a second warning would be an error here


def test_strength_that_survives_in_halves_is_not_told():
    model = nn.Linear(20, 20, bias=False).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    regplug.attach(model, optimizer, ["l1(0.5)"])
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()


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
    exactly(total.detach(), (1.5 * loss + terms).detach())
    (gradient,) = torch.autograd.grad(total, model.first.bias, retain_graph=True)
    (data_gradient,) = torch.autograd.grad(loss, model.first.bias)
    exactly(gradient, data_gradient + 2 * bias)


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


# Strengths of zero


def test_strength_zero_is_as_good_as_absent_and_nan_weights_stay_the_loops_own():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    session = regplug.attach(model, plugins=["l1(0)", "l2(0)", "elastic_net(0, 0)"])
    assert session.loss(torch.tensor(1.0)).item() == 1.0


@pytest.mark.parametrize("kind", [L1, L2])
def test_twice_the_strength_is_twice_the_value(kind):
    model = Net()
    one = regplug.attach(model, plugins=[kind(0.25)]).metrics()
    two = regplug.attach(model, plugins=[kind(0.5)]).metrics()
    name = kind.__name__.lower()
    assert two[f"{name}/value"] == pytest.approx(2 * one[f"{name}/value"])


def test_elastic_net_of_one_strength_is_the_other_penalty():
    model = Net()
    for specs in (["elastic_net(0.3, 0)", "l1(0.3)"], ["elastic_net(0, 0.3)", "l2(0.3)"]):
        values = [
            regplug.attach(model, plugins=[s]).loss(torch.zeros((), dtype=torch.float64))
            for s in specs
        ]
        exactly(values[0].detach(), values[1].detach())
