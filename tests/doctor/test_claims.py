"""What is told of a run: of one that diverges, is cut short, or has much attached to it."""

import copy
import math
import pickle
from collections import Counter
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode

import regplug
from regplug import doctor
from regplug.doctor.run import Run
from regplug.doctor.watch import Watch
from tests.doctor.diagnosing import diagnosed, undiagnosed


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_run_that_diverges_is_told_of(bad):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with doctor.examine(model, optimizer) as report:
        for step in range(6):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 5)).square().mean()
            loss = loss + 1e-3 * sum(p.abs().sum() for p in model.parameters() if p.ndim > 1)
            (loss * bad if step >= 3 else loss).backward()
            optimizer.step()
    (unseen,) = report.report.unseen
    assert "not finite" in unseen
    assert (report.steps, report.report.looked) == (6, 3)
    (penalty,) = {p for group in report.groups for p in group.penalties}
    assert (penalty.kind, penalty.strength) == ("l1", pytest.approx(1e-3, rel=1e-5))
    assert report.findings == []
    assert str(report)
    assert report.as_json()["runs"][0]["steps"] == 6


def test_copies_and_pickles_made_meanwhile_hold_nothing_of_the_doctor():
    model = small()
    optimizer = torch.optim.AdamW(model.parameters())
    with doctor.examine(model, optimizer):
        for _ in range(2):
            model(torch.ones(3, 5)).sum().backward()
            optimizer.step()
        copied, pickled = copy.deepcopy(model), pickle.dumps(model)
        # One of the optimizer is made inside its step as well as between two.
        copy.deepcopy(optimizer)
    assert b"regplug" not in pickled
    for other in (copied, pickle.loads(pickled)):
        assert not any(table for name, table in vars(other).items() if name.endswith("_hooks"))


def test_a_scaler_of_ones_own_is_a_scaler():
    (report,) = diagnosed("""
        class Own(torch.amp.GradScaler):
            pass
        class Owner(Own):
            pass
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = Owner("cpu", init_scale=64.0)
        for _ in range(4):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y) + 0.01 * sum(
                p.pow(2).sum() for p in weights(model))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    """)
    (strength,) = {p.strength for group in report.groups for p in group.penalties}
    assert strength == pytest.approx(0.01, rel=1e-5)
    assert {finding.code for finding in report.findings} == set()


class Costly(regplug.Penalty):
    """A penalty that counts how often its value is asked for."""

    asked: ClassVar[Counter] = Counter()

    def __init__(self, strength: float = 0.1) -> None:
        super().__init__(strength)

    def value(self, x):
        self.asked["value"] += 1
        return self.strength * x.abs().sum()


def test_a_plugin_is_asked_once_and_not_for_each_of_its_weights():
    def asked(layers, examined):
        Costly.asked.clear()
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        regplug.attach(model, optimizer, [Costly(0.1)])
        report = doctor.examine(model, optimizer, steps=3)
        with report if examined else torch.enable_grad():
            for _ in range(3):
                model(torch.ones(2, 4)).square().mean().backward()
                optimizer.step()
        return Costly.asked["value"], [group.plugins for group in report.groups]

    own = []
    for layers in (2, 12):
        (alone, _), (with_doctor, told) = asked(layers, False), asked(layers, True)
        own.append(with_doctor - alone)
        assert ("costly(strength 0.1)",) in told
    assert own[0] == own[1] > 0


def test_what_joins_late_is_compared_with_the_same_steps_of_the_others():
    def examined(joins):
        torch.manual_seed(0)
        model = nn.ModuleDict({"first": nn.Linear(4, 4), "late": nn.Linear(4, 4)})
        optimizer = torch.optim.SGD(model["first"].parameters(), lr=1e-4)
        x = torch.randn(16, 4)
        with doctor.examine(model, optimizer) as report:
            for step in range(8):
                if step == 4 and joins:
                    optimizer.add_param_group({"params": model["late"].parameters()})
                optimizer.zero_grad()
                loss = model["first"](x).square().mean()
                if step < 4:
                    loss = loss + 50 * model["first"].weight.abs().sum()
                else:
                    loss = loss + 1e4 * model["late"](x).square().mean()
                loss.backward()
                optimizer.step()
        return [f.values for f in report.findings if f.code == "penalty-dominates"]

    # The large gradients come when the penalty is gone, and hide nothing of it.
    (alone,), (joined,) = examined(False), examined(True)
    assert joined["ratio"] == pytest.approx(alone["ratio"], rel=1e-3)


def test_steps_without_a_gradient_leave_no_look_at_what_joined_late():
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "late": nn.Linear(4, 4)})
    optimizer = torch.optim.AdamW(model["first"].parameters())
    run = Run(model, optimizer, 20)
    with Watch([run]):
        for step in range(6):
            if step == 3:
                optimizer.add_param_group({"params": model["late"].parameters()})
            optimizer.zero_grad()
            if step != 4:
                out = model["first"](torch.ones(2, 4)) + model["late"](torch.ones(2, 4))
                out.sum().backward()
            optimizer.step()
    assert run.steps == len(run.looked) == 5
    assert {track.name: len(track.looks) for track in run.tracks} == {
        "first.weight": 5,
        "first.bias": 5,
        "late.weight": 2,
        "late.bias": 2,
    }


def test_a_step_that_raised_does_not_end_the_examination():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fails = [False, True, False, False]

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(8, 5)).square().mean()
        (loss + 1e-3 * model[0].weight.pow(2).sum()).backward()
        if fails.pop(0):
            raise RuntimeError("out of memory")
        return loss

    with doctor.examine(model, optimizer) as report:
        optimizer.step(closure)
        with pytest.raises(RuntimeError, match="out of memory"):
            optimizer.step(closure)
        optimizer.step(closure)
        optimizer.step(closure)
    assert report.steps == 3
    assert report.report.looked == 3


def test_a_compiled_model_is_compiled_without_a_hook_of_the_doctors():
    model = small()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with doctor.examine(compiled, optimizer) as report:
        for _ in range(3):
            optimizer.zero_grad()
            compiled(torch.ones(8, 5)).square().mean().backward()
            optimizer.step()
    torch._dynamo.reset()
    assert len(graphs) == 1
    assert report.steps == 3


@pytest.mark.parametrize("kind", ["own", "global"])
def test_hooks_that_change_gradients_are_looked_at_after_them(kind):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def halve(*arguments):
        for p in model.parameters():
            p.grad.mul_(0.5)

    with doctor.examine(model, optimizer) as report:
        if kind == "own":
            optimizer.register_step_pre_hook(halve)
            remove = None
        else:
            remove = register_optimizer_step_pre_hook(halve).remove
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 5)).square().mean()
            (loss + 0.01 * model[0].weight.abs().sum()).backward()
            optimizer.step()
    if remove is not None:
        remove()
    assert report.report.unseen == []
    (penalty,) = [p for group in report.groups for p in group.penalties]
    assert penalty.strength == pytest.approx(0.005, rel=1e-5)


def test_hooks_of_others_come_before_plugins_still():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, ["l1(0.01, delivery='step')"])
    norms = []

    def clip(*arguments):
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1e-3)))

    optimizer.register_step_pre_hook(clip)
    before = [p.detach().clone() for p in model.parameters()]
    with doctor.examine(model, optimizer) as report:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(8, 5)).square().mean().backward()
            optimizer.step()
    # The plugin's gradient is not clipped: its step is 0.1·0.01 for each weight, thrice.
    moved = (before[0] - model[0].weight.detach()).abs().max()
    assert float(moved) == pytest.approx(3e-3, rel=0.2)
    assert len(norms) == 3
    assert not any("changed" in line for line in report.report.unseen)
    assert all(group.penalties == () for group in report.groups)


class Clipped(torch.optim.SGD):
    """One that clips in its own step."""

    def step(self, closure=None):
        nn.utils.clip_grad_norm_([p for g in self.param_groups for p in g["params"]], 1e-3)
        return super().step(closure)


def test_a_clipping_inside_the_step_is_said():
    model = small()
    optimizer = Clipped(model.parameters(), lr=0.1)
    with doctor.examine(model, optimizer) as report:
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.ones(8, 5)).square().mean()
            (loss + 0.01 * model[0].weight.abs().sum()).backward()
            optimizer.step()
    (said,) = report.report.unseen
    assert "the step of Clipped multiplies gradients itself" in said


class Counting(TorchFunctionMode):
    """A mode of somebody else's."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


DETACHED = """
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, lambda: 1e-3 * sum(p.data.abs().sum() for p in weights(model)))
"""


def test_where_a_mode_of_others_is_on_it_is_said_what_is_not_looked_for():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with doctor.examine(model, optimizer) as report, Counting():
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(torch.ones(8, 5)).square().mean()
            (loss + 0.01 * model[0].weight.data.abs().sum()).backward()
            optimizer.step()
    (said,) = report.report.unseen
    assert "another function mode of torch is on (Counting)" in said
    # Nothing acts, as far as it was seen; a dropout by a function would not have been.
    assert report.findings == []


def test_the_mode_of_a_default_device_is_in_nobodys_way():
    before = undiagnosed(DETACHED)
    scope = {}
    torch.set_default_device("cpu")
    try:
        (report,) = diagnosed(DETACHED, scope=scope)
    finally:
        torch.set_default_device(None)
    assert "detached-penalty" in {finding.code for finding in report.findings}
    assert torch.overrides._get_current_function_mode_stack() == []
    pairs = zip(before["model"].parameters(), scope["model"].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_learning_rate_that_is_none_is_no_zero():
    class Relative(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                group["lr"] = 0.1
            super().step(closure)
            for group in self.param_groups:
                group["lr"] = None

    model = small()
    optimizer = Relative(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = None
    with doctor.examine(model, optimizer) as report:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.ones(8, 5)).square().mean().backward()
            optimizer.step()
    assert "lr-zero" not in {finding.code for finding in report.findings}
    assert report.report.looked == 4
