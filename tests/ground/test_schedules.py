"""Schedules: their values, their bounds, and what is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regplug
from regplug.errors import PluginError, RegplugError, SpecError
from regplug.schedules import (
    Schedule,
    as_schedule,
    constant,
    cosine,
    exponential,
    linear,
    piecewise,
    warmup,
)
from regplug_builtins import L1, ElasticNet, WeightDecay

# Values


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (constant(0.5), {0: 0.5, 10**9: 0.5}),
        (linear(1.0, 2.0, steps=4), {0: 1.0, 1: 1.25, 2: 1.5, 3: 1.75, 4: 2.0, 5: 2.0, 10**9: 2.0}),
        (linear(2.0, 1.0, steps=1), {0: 2.0, 1: 1.0, 2: 1.0}),
        (
            cosine(1.0, 0.0, steps=4),
            {
                0: 1.0,
                1: (1 + math.sqrt(0.5)) / 2,
                2: 0.5,
                3: (1 - math.sqrt(0.5)) / 2,
                4: 0.0,
                9: 0.0,
            },
        ),
        (exponential(1.0, 16.0, steps=4), {0: 1.0, 1: 2.0, 2: 4.0, 3: 8.0, 4: 16.0, 5: 16.0}),
        (exponential(1e-300, 1e300, steps=2), {0: 1e-300, 1: 1.0, 2: 1e300}),
        (piecewise({0: 0.0, 3: 0.5, 5: 0.25}), {0: 0.0, 2: 0.0, 3: 0.5, 4: 0.5, 5: 0.25, 99: 0.25}),
        (piecewise({5: 0.25, 0: 1}), {0: 1.0, 4: 1.0, 5: 0.25}),
        (warmup(2.0, steps=4), {0: 0.0, 1: 0.5, 4: 2.0, 5: 2.0}),
        (warmup(linear(1.0, 0.0, steps=4), steps=2), {0: 0.0, 1: 0.375, 2: 0.5, 4: 0.0}),
        (warmup(lambda step: step, steps=2), {0: 0.0, 1: 0.5, 2: 2.0, 3: 3.0}),
    ],
    ids=lambda value: repr(value).partition(" at 0x")[0],  # the same in every process
)
def test_values_are_those_of_the_formulas(schedule, values):
    assert {step: schedule(step) for step in values} == pytest.approx(values, rel=1e-12, abs=1e-12)


finite = st.floats(-1e6, 1e6)
positive = st.floats(1e-6, 1e6)
counts = st.integers(1, 10_000)
plain = st.one_of(
    st.builds(constant, finite),
    st.builds(linear, finite, finite, counts),
    st.builds(cosine, finite, finite, counts),
    st.builds(exponential, positive, positive, counts),
    st.builds(
        lambda first, rest: piecewise({0: first, **rest}),
        finite,
        st.dictionaries(st.integers(1, 1000), finite, max_size=4),
    ),
)
schedules = plain | st.builds(warmup, plain, counts)


@given(schedules, st.integers(0, 20_000))
def test_no_value_leaves_the_bounds(schedule, step):
    """A rate that is checked to lie in [0, 1] must not leave it by a rounding at step 10,000."""
    low, high = schedule.bounds()
    assert low <= schedule(step) <= high


@given(schedules)
def test_repr_makes_the_same_schedule(schedule):
    names = {kind.__name__: kind for kind in (constant, linear, cosine, exponential)}
    again = eval(repr(schedule), {**names, "piecewise": piecewise, "warmup": warmup})
    assert again == schedule
    assert hash(again) == hash(schedule)


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constant(math.nan), "value must be finite, got nan"),
        (lambda: constant("1"), "value must be a number, got '1'"),
        (lambda: constant(True), "value must be a number, got True"),
        (lambda: constant(None), "value must be a number, got None"),
        (lambda: constant(1 + 2j), "value must be a number"),
        (lambda: constant(10**400), "value must be finite"),
        (lambda: linear(0, math.inf, steps=1), "end must be finite, got inf"),
        (lambda: linear([], 1, steps=1), r"start must be a number, got \[\]"),
        (lambda: linear(0, 1, steps=0), "steps must be at least 1, got 0"),
        (lambda: linear(0, 1, steps=-3), "steps must be at least 1, got -3"),
        (lambda: linear(0, 1, steps=1.5), "steps must be a whole number, got 1.5"),
        (lambda: linear(0, 1, steps=math.inf), "steps must be a whole number, got inf"),
        (lambda: linear(0, 1, steps=math.nan), "steps must be a whole number, got nan"),
        (lambda: linear(0, 1, steps="9"), "steps must be a whole number, got '9'"),
        (lambda: linear(0, 1, steps=True), "steps must be a whole number, got True"),
        (lambda: cosine(0, 1, steps=None), "steps must be a whole number, got None"),
        (lambda: exponential(0, 1, steps=1), "must be above 0"),
        (lambda: exponential(1, -1, steps=1), "must be above 0"),
        (lambda: piecewise({}), "a mapping of step to value"),
        (lambda: piecewise([0, 1]), "a mapping of step to value"),
        (lambda: piecewise({1: 0.5}), "what holds at step 0"),
        (lambda: piecewise({0: 1, -1: 0.5}), "whole number ≥ 0, got -1"),
        (lambda: piecewise({0: 1, 1.5: 0.5}), "whole number ≥ 0, got 1.5"),
        (lambda: piecewise({0: 1, 5: math.inf}), "value at step 5 must be finite"),
        (lambda: warmup("x", steps=1), "schedule must be a number, got 'x'"),
        (lambda: warmup(1.0, steps=0), "steps must be at least 1"),
        (lambda: L1(linear(0, -1, steps=1)), "strength must be finite and not negative, got -1"),
        (lambda: L1(lambda step: -1.0), "strength must be finite and not negative, got -1"),
        (lambda: L1(lambda step: "x"), "strength must be a number, got 'x'"),
        (lambda: L1(lambda: 1.0), "strength .* at step 0 raised TypeError"),
        (lambda: L1(-1e-9), "strength must be finite and not negative, got -1e-09"),
        (lambda: WeightDecay(warmup(-1.0, steps=2)), "strength must be finite and not negative"),
        (lambda: ElasticNet(1.0, -2.0), "l2_strength must be finite and not negative, got -2"),
    ],
)
def test_wrong_schedules_are_refused_when_they_are_made(make, message):
    with pytest.raises(SpecError, match=message):
        make()


def test_any_callable_of_the_step_serves():
    class Decay:
        def __call__(self, step):
            return torch.tensor(0.5) ** step

    assert as_schedule(Decay())(2) == 0.25
    assert not isinstance(as_schedule(Decay()), Schedule)
    model = torch.nn.Linear(2, 2)
    session = regplug.attach(model, plugins=[L1(Decay()), WeightDecay(lambda step: 1 / (1 + step))])
    session.load_state_dict({"steps": 3, "plugins": {"l1": {}, "weight_decay": {}}})
    metrics = session.metrics()
    assert (metrics["l1/strength"], metrics["weight_decay/strength"]) == (0.125, 0.25)
    assert "0.125" in session.describe()


def test_callable_that_goes_wrong_later_is_blamed_at_its_step():
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, [L1(lambda step: 1.0 if step < 2 else math.nan)])
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    message = r"l1 \(regplug .* on_gradients at step 2.*strength must be finite.*got nan"
    with pytest.raises(RegplugError, match=message):
        optimizer.step()
    assert session.steps == 2


def test_strength_that_was_never_set_is_told_at_attach():
    class Forgetful(regplug.Penalty):
        def __init__(self):
            self.something = 1

        def value(self, w):
            return w.abs().sum()

    with pytest.raises(PluginError, match=r"Forgetful.strength was never set.*super\(\).__init__"):
        regplug.attach(torch.nn.Linear(2, 2), plugins=[Forgetful()])
