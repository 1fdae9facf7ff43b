"""A strength that follows what is measured: set after each step, saved, and put back at detach."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import regplug
from regplug.schedules import linear
from regplug.testing import check_plugin
from regplug_builtins import L1, L2SP, WeightDecay
from tests.helpers.compare import close, same
from tests.helpers.nets import one_layer, tanh_net


class Norm(regplug.Adaptive, regplug.Penalty):
    """λ·Σw², where λ grows while Σw² is above a target: the plainest of its kind."""

    separable = True
    adapts = ("strength", "norms")

    def __init__(self, strength: Any = 0.01, *, every: int = 1, **options: Any) -> None:
        super().__init__(strength, **options)
        self.every = every
        self.norms: list[torch.Tensor] = []

    def value(self, w: torch.Tensor) -> torch.Tensor:
        return w.square().sum()

    def adapt(self, session: Any) -> None:
        covered = [entry.parameter for entry in session.coverage(self._selection)]
        parts = [regplug.local(p.detach()).square().sum() for p in covered]
        norm = regplug.summed(covered, parts).sum()
        self.norms = [*self.norms[-1:], norm]
        self.strength = self.strength * (1.5 if norm > 0.5 else 0.5)


class Told(regplug.Adaptive, L1):
    """The lasso at a strength that the loop tells."""

    @regplug.hookimpl
    def on_note(self, session: Any, values: Any) -> None:
        self.strength = values["strength"]


class Drifting(regplug.Adaptive, L2SP):
    """Of a plugin that has a state of its own."""

    def adapt(self, session: Any) -> None:
        self.strength = 1.25 * self.strength


def trained(plugin: Any, steps: int = 0) -> Any:
    model = tanh_net(4, 5, 1).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    session = regplug.attach(model, optimizer, [plugin])
    run(model, optimizer, range(steps))
    return model, optimizer, session


def run(model: Any, optimizer: Any, steps: range) -> None:
    for step in steps:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step)).double()
        optimizer.zero_grad()
        (model(x) - x[:, :1]).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("delivery", ["step", "proximal"])
def test_each_step_has_the_strength_that_was_measured_after_the_one_before(delivery: str) -> None:
    # By hand: one weight, no data. The lasso's own formula, at strengths that double.
    class Doubling(regplug.Adaptive, L1):
        def adapt(self, session: Any) -> None:
            self.strength = 2 * self.strength

    model = one_layer(10.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    regplug.attach(model, optimizer, [Doubling(0.25, delivery=delivery)])
    for _ in range(4):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    close(model.weight, torch.tensor([[10.0 - 0.5 * 0.25 * (1 + 2 + 4 + 8)]]).double())


def test_every_says_how_often() -> None:
    _, _, session = trained(Norm(1.0, every=3), 8)
    assert session.metrics()["norm/strength"] in (0.25, 0.75, 2.25)  # two times in eight steps
    with pytest.raises(regplug.errors.SpecError, match="every must be a whole number"):
        trained(Norm(every=0))


@pytest.mark.parametrize("plugin", [Norm(0.1), Drifting(0.1)], ids=["formula", "own state"])
def test_it_is_resumed_to_the_bit(plugin: Any, tmp_path: Any) -> None:
    model, optimizer, session = trained(copy.deepcopy(plugin), 4)
    kept = [copy.deepcopy(part.state_dict()) for part in (model, optimizer, session)]
    run(model, optimizer, range(4, 9))
    torch.save(kept[2], tmp_path / "state.pt")
    kept[2] = torch.load(tmp_path / "state.pt", weights_only=True)
    again = trained(copy.deepcopy(plugin))
    for part, state in zip(again, kept, strict=True):
        part.load_state_dict(state)
    assert again[2].metrics()[f"{plugin.name}/strength"] != 0.1
    run(*again[:2], range(4, 9))
    assert same(again[0], model)
    assert same(again[2].state_dict(), session.state_dict())


def test_a_schedule_goes_on_until_something_is_measured() -> None:
    def make() -> Any:
        model = one_layer(1.0, 2.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, optimizer, regplug.attach(model, optimizer, [Told(linear(0, 1, steps=10))])

    def step(made: Any) -> float:
        made[0].weight.grad = torch.zeros_like(made[0].weight)
        made[1].step()
        return float(made[2].plugins[0].strength)

    first, second = make(), make()
    for _ in range(2):
        step(first)
    second[2].load_state_dict(first[2].state_dict())
    assert step(first) == step(second) == pytest.approx(0.3)
    first[2].note(strength=0.75)
    second[2].load_state_dict(first[2].state_dict())
    assert step(first) == step(second) == 0.75
    third = make()
    second[2].load_state_dict(third[2].state_dict())  # and back to the schedule
    assert step(second) == pytest.approx(0.1)


def test_at_detach_the_strength_is_the_users_again_and_reports_go_on() -> None:
    plugin = Norm(0.25)
    model, optimizer, session = trained(plugin, 5)
    told = session.metrics()
    assert told["norm/strength"] != 0.25
    session.detach()
    assert (plugin.strength, plugin.norms) == (0.25, [])
    assert session.metrics() == told
    schedule = linear(0, 1, steps=4)
    again = Told(schedule)
    with regplug.attach(model, optimizer, [again]) as session:
        session.note(strength=0.5)
    assert Told.strength.schedule(again) == schedule


def test_states_of_others_are_refused() -> None:
    _, _, session = trained(Norm())
    state = session.state_dict()
    for wrong in ({}, {"adapted": {"other": 1.0}}, {"adapted": 3}):
        state["plugins"]["norm"] = wrong
        with pytest.raises(regplug.errors.RegplugError, match="strength, norms"):
            session.load_state_dict(state)


@pytest.mark.parametrize(
    "plugin",
    [
        pytest.param(Norm(0.1), id="formula", marks=pytest.mark.slow),
        pytest.param(Drifting(0.01), id="own state"),
    ],
)
def test_it_sits_the_exam(plugin: Any) -> None:
    leave_out = ("ddp", "fsdp2", "ranks")  # the workers import no test
    checks = [c for c in regplug.testing.CHECKS if c not in leave_out]
    report = check_plugin(plugin, checks=checks)
    assert report.passed, str(report)


def test_what_is_adapted_can_not_be_given_by_pattern() -> None:
    class Halving(regplug.Adaptive, L1):
        def adapt(self, session: Any) -> None:
            self.strength = 0.5 * self.strength

    plugin = Halving({"0.*": 0.1, "*": 0.2})  # type: ignore[arg-type]
    with pytest.raises(regplug.errors.SpecError, match="strength follows what is measured"):
        trained(plugin)
    plugin.strength = 0.1
    assert trained(plugin, 2)[2].metrics()["halving/strength"] == 0.025


def test_an_attribute_of_the_class_is_the_classs_again_at_detach_and_in_a_state_before_it() -> None:
    class Watching(regplug.Adaptive):
        adapts = ("best",)
        changes_weights = False
        best: float | None = None

        def adapt(self, session: Any) -> None:
            self.best = float(session.steps)

    plugin = Watching()
    model, optimizer, session = trained(plugin)
    fresh = session.state_dict()
    del fresh["plugins"]["watching"]["adapted"]["best"]  # as of a version that had none
    run(model, optimizer, range(3))
    assert plugin.best == 2.0
    session.load_state_dict(fresh)
    assert "best" not in vars(plugin)
    run(model, optimizer, range(3, 4))
    session.detach()
    assert plugin.best is None
    assert "best" not in vars(plugin)


def test_what_was_at_attach_is_kept_apart_from_what_is_changed_in_place() -> None:
    class Tallying(regplug.Adaptive):
        adapts = ("nested", "total")
        changes_weights = False

        def __init__(self) -> None:
            self.nested: Any = {"seen": [[0]]}
            self.total = torch.zeros(2)

        def adapt(self, session: Any) -> None:
            self.nested["seen"][0].append(session.steps)
            self.total += 1

    plugin = Tallying()
    _, _, session = trained(plugin, 3)
    assert plugin.nested == {"seen": [[0, 0, 1, 2]]}
    session.detach()
    assert plugin.nested == {"seen": [[0]]}
    assert torch.equal(plugin.total, torch.zeros(2))


def test_it_adapts_beside_a_plugin_that_is_idle_after_the_step() -> None:
    class Growing(regplug.Adaptive, WeightDecay):
        def adapt(self, session: Any) -> None:
            self.strength = 2 * self.strength

    model = one_layer(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    session = regplug.attach(model, optimizer, [Growing(0.1)])
    for _ in range(3):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    close(model.weight, torch.tensor([[0.95 * 0.9 * 0.8]], dtype=torch.float64))
    assert session.metrics()["growing/strength"] == 0.8
    session.detach()

    class Told(WeightDecay):
        told = 0

        @regplug.hookimpl
        def after_step(self, session: Any) -> None:
            self.told += 1

    with regplug.attach(model, optimizer, [Told(0.1)]) as session:
        optimizer.step()
        assert session.plugins[0].told == 1


def test_what_could_never_adapt_is_refused() -> None:
    with pytest.raises(regplug.errors.SpecError, match=r"class Late\(regplug.Adaptive, L1\)"):

        class Late(L1, regplug.Adaptive):
            pass

    class Text(regplug.Adaptive, L1):
        adapts = "strength"  # type: ignore[assignment]

    class Unknown(regplug.Adaptive, L1):
        adapts = ("strength", "average")

    class Bare(regplug.Adaptive):
        pass

    for plugin, words in (
        (Text(0.1), r"adapts must be a tuple, \('strength',\)"),
        (Unknown(0.1), "adapts names 'average', which the plugin does not have"),
        (Bare(), "adapts names 'strength'"),
    ):
        with pytest.raises(regplug.errors.SpecError, match=words):
            trained(plugin)


@pytest.mark.parametrize("value", [linear(0, 1, steps=4), lambda step: 0.5, {"*": 0.5}])
def test_what_could_not_go_on_is_refused_when_it_is_set(value: Any) -> None:
    class Setting(regplug.Adaptive, L1):
        def adapt(self, session: Any) -> None:
            if session.steps == 1:
                self.strength = value

    with pytest.raises(regplug.errors.RegplugError, match=r"setting .* strength was set to .*save"):
        trained(Setting(linear(1, 0, steps=5)), 3)


class Holding(regplug.Adaptive):
    adapts = ("held",)
    changes_weights = False

    def __init__(self, held: Any) -> None:
        self.held = held


@pytest.mark.parametrize(
    "value", [np.float64(0.5), np.int64(3), (1, (2.0, "a")), [None, True], {1: torch.ones(2)}]
)
def test_numbers_of_numpy_and_tuples_are_saved_as_plain_ones(value: Any, tmp_path: Any) -> None:
    _, _, session = trained(Holding(value))
    torch.save(session.state_dict(), tmp_path / "state.pt")
    session.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    held = session.plugins[0].held
    assert same(held, value) if isinstance(value, dict) else held == value
    assert isinstance(held, tuple) is isinstance(value, tuple)


@pytest.mark.parametrize("value", [np.ones(2), range(3), torch.nn.Linear(1, 1)])
def test_what_no_state_can_hold_is_refused_when_it_is_saved(value: Any) -> None:
    _, _, session = trained(Holding(value))
    with pytest.raises(regplug.errors.RegplugError, match=r"holding .* can't be saved: keep"):
        session.state_dict()
