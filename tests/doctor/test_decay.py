"""Decay as it is measured on a copy: the convention, the rate and λ in it."""

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from regplug import doctor

O = torch.optim  # noqa: E741


class Decoupled(O.Optimizer):
    """Descent with momentum, whose decay is decoupled in one of the conventions."""

    def __init__(self, params, lr, weight_decay, kind, momentum=0.9):
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "max_lr": lr}
        super().__init__(params, {**defaults, "initial_lr": lr})
        self.kind = kind

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            lr, wd = group["lr"], group["weight_decay"]
            rate = {
                "lr·wd": lr * wd,
                "lr/lr₀·wd": lr / group["initial_lr"] * wd,
                "plain wd": wd,
                "lr²/max_lr·wd": lr**2 / group["max_lr"] * wd,
            }[self.kind]
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    m = state.setdefault("m", torch.zeros_like(p))
                    m.mul_(group["momentum"]).add_(p.grad)
                    p.mul_(1 - rate).sub_(lr * m)


class Named(O.Optimizer):
    """Adam whose coupled decay has another name than torch's, and is squared."""

    def __init__(self, params, lr, l2):
        super().__init__(params, {"lr": lr, "l2": l2})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                g = p.grad + group["l2"] ** 2 * p
                v = self.state[p].setdefault("v", torch.zeros_like(p))
                v.mul_(0.9).addcmul_(g, g, value=0.1)
                p.sub_(group["lr"] * g / (v.sqrt() + 1e-8))


def examined(make, steps=3, lr_of=None):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimizer = make(model.parameters())
    with doctor.examine(model, optimizer) as report:
        for step in range(steps):
            if lr_of is not None:
                optimizer.param_groups[0]["lr"] = lr_of(step)
            optimizer.zero_grad()
            model(torch.randn(8, 5)).square().mean().backward()
            optimizer.step()
    assert report.report.unseen == []
    return {group.decay and (group.decay.convention, group.decay) for group in report.groups}


COUPLED = [
    *(O.Adam, O.NAdam, O.RAdam, O.RMSprop, O.Adagrad, O.Adadelta, O.Adamax),
    *(lambda p, **k: O.SGD(p, momentum=0.9, **k), lambda p, **k: O.SGD(p, fused=True, **k)),
    *(lambda p, **k: O.SGD(p, maximize=True, **k), lambda p, **k: O.SGD(p, foreach=True, **k)),
    lambda p, **k: O.Adam(p, foreach=False, **k),
    lambda p, **k: O.SGD(p, momentum=0.9, nesterov=True, **k),
]


@pytest.mark.parametrize("kind", COUPLED)
def test_coupled_decay(kind):
    ((convention, decay),) = examined(lambda p: kind(p, lr=0.01, weight_decay=0.03))
    assert convention == "coupled"
    assert decay.strength == pytest.approx(0.03, rel=1e-5)
    assert decay.rate == pytest.approx(0.0003, rel=1e-5)


@pytest.mark.parametrize(
    "kind",
    [
        O.AdamW,
        O.Adafactor,
        lambda p, **k: O.AdamW(p, fused=True, **k),
        lambda p, **k: O.AdamW(p, amsgrad=True, maximize=True, **k),
        lambda p, **k: O.NAdam(p, decoupled_weight_decay=True, **k),
    ],
)
def test_decoupled_decay(kind):
    ((convention, decay),) = examined(lambda p: kind(p, lr=0.01, weight_decay=0.03))
    assert convention == "lr·wd"
    assert decay.strength == pytest.approx(0.03, rel=1e-5)
    assert decay.rate == pytest.approx(0.0003, rel=1e-5)
    assert decay.lr == 0.01


@pytest.mark.parametrize("kind", ["lr·wd", "lr/lr₀·wd", "plain wd", "lr²/max_lr·wd"])
def test_each_convention_by_a_schedule(kind):
    lrs = (0.2, 0.1, 0.05)
    ((convention, decay),) = examined(
        lambda p: Decoupled(p, 0.2, 0.03, kind), lr_of=lambda step: lrs[step]
    )
    assert convention == kind
    assert decay.strength == pytest.approx(0.03, rel=1e-5)
    rates = {"lr·wd": 0.0015, "lr/lr₀·wd": 0.0075, "plain wd": 0.03, "lr²/max_lr·wd": 0.000375}
    assert decay.rate == pytest.approx(rates[kind], rel=1e-5)


def test_a_coupled_decay_that_no_name_tells_of():
    ((convention, decay),) = examined(lambda p: Named(p, 0.01, 0.2))
    assert (convention, decay.strength) == ("coupled", pytest.approx(0.04, rel=1e-5))


@pytest.mark.parametrize("kind", [O.SGD, O.Adam, O.LBFGS, O.Rprop, O.Adagrad])
def test_no_decay(kind):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimizer = kind(model.parameters(), lr=0.01)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.randn(8, 5)).square().mean()
        loss.backward()
        return loss

    with doctor.examine(model, optimizer) as report:
        optimizer.step(closure)
    assert [group.decay for group in report.groups] == [None]
    assert report.report.unseen == []


@pytest.mark.parametrize("wd", [1e-2, 1e-4])
def test_decay_by_hand_after_the_step(wd):
    model = nn.Linear(30, 20)
    optimizer = O.SGD(model.parameters(), lr=0.1)
    with doctor.examine(model, optimizer) as report:
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.randn(8, 30)).square().mean().backward()
            optimizer.step()
            model.weight.data.mul_(1 - 0.1 * wd)
    by_name = {name: group for group in report.groups for name in group.parameters}
    decay = by_name["weight"].decay
    assert (decay.by, decay.convention) == ("loop", "lr·wd")
    assert decay.strength == pytest.approx(wd, rel=1e-2)
    assert by_name["bias"].decay is None


def test_decay_by_hand_in_the_gradient():
    model = nn.Linear(5, 3)
    optimizer = O.SGD(model.parameters(), lr=0.1)
    with doctor.examine(model, optimizer) as report:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 5)).square().mean().backward()
            with torch.no_grad():
                for p in model.parameters():
                    p.grad.mul_(0.5).add_(p, alpha=0.03)
            optimizer.step()
    (decay,) = {group.decay for group in report.groups}
    assert (decay.by, decay.convention) == ("loop", "coupled")
    assert decay.strength == pytest.approx(0.03, rel=1e-3)


class Counting(Decoupled):
    """One that keeps things of its own, and calls the step of what it subclasses."""

    def __init__(self, params):
        super().__init__(params, 0.1, 0.1, "lr·wd")
        self.history, self.counts = [], {"steps": 0}

    def step(self, closure=None):
        self.history.append(1)
        self.counts["steps"] += 1
        return super().step(closure)


def test_a_copy_steps_nothing_of_the_original():
    Decoupled([nn.Parameter(torch.ones(1))], 0.1, 0.1, "lr·wd")  # torch wraps its step
    model = nn.Linear(5, 3)
    optimizer = Counting(model.parameters())
    seen = []
    handle = register_optimizer_step_pre_hook(lambda *arguments: seen.append(arguments[0]))
    with doctor.examine(model, optimizer) as report:
        for _ in range(3):
            model(torch.ones(8, 5)).square().mean().backward()
            optimizer.step()
    handle.remove()
    assert optimizer.history == [1, 1, 1]
    assert optimizer.counts == {"steps": 3}
    assert seen == [optimizer] * 6
    assert report.groups[0].decay.strength == pytest.approx(0.1, rel=1e-5)
    assert report.steps == 3
