"""A rate that is set while the plugin is attached reaches the modules, or is refused."""

import pytest
import torch

import regplug
import regplug.strengths
from regplug import schedules
from regplug.errors import SpecError
from regplug.testing.bench import StochasticDepth
from regplug_builtins import Dropout, DropPath


def attached(plugin):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.4), StochasticDepth(0.3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, regplug.attach(model, optimizer, [plugin])


@pytest.mark.parametrize("start", [0.2, schedules.linear(0.2, 0.1, steps=5)])
def test_the_modules_follow_at_once(start):
    plugin = Dropout(start)
    model, session = attached(plugin)
    plugin.rate = 0.7
    assert float(model[1].p) == 0.7
    assert session.metrics()["dropout/rate"] == 0.7
    session.detach()
    assert model[1].p == 0.4


def test_a_factor_and_a_drop_path_too():
    plugin = Dropout(0.5, relative=True)
    model, session = attached(plugin)
    plugin.factor = 0.25
    assert model[1].p == pytest.approx(0.1)
    session.detach()
    path = DropPath(0.2)
    model, session = attached(path)
    path.rate = 0.6
    assert float(model[2].drop_prob) == 0.6
    session.detach()
    assert model[2].drop_prob == 0.3


def test_a_constant_gets_no_schedule_while_it_is_attached():
    plugin = Dropout(0.2)
    model, session = attached(plugin)
    with pytest.raises(SpecError, match="detach"):
        plugin.rate = schedules.linear(0.2, 0.1, steps=5)
    assert (plugin.rate, model[1].p) == (0.2, 0.2)
    with pytest.raises(SpecError, match="rate"):
        plugin.rate = 1.5
    session.detach()
    assert model[1].p == 0.4


def of_two(plugin):
    model = torch.nn.Sequential(torch.nn.Dropout(0.4), torch.nn.Linear(3, 3), torch.nn.Dropout(0.3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, regplug.attach(model, optimizer, [plugin])


@pytest.mark.parametrize(
    ("before", "other"),
    [
        (0.2, {"0": 0.1, "*": 0.2}),
        ({"0": 0.1, "*": 0.2}, {"2": 0.1, "*": 0.2}),
        ({"0": 0.1, "*": 0.2}, {"*": 0.2, "0": 0.1}),
        ({"0": 0.1, "*": 0.2}, {"0": regplug.strengths.per_layer(0.1, decay=0.5), "*": 0.2}),
        (0.2, regplug.strengths.per_layer(0.1, decay=0.5)),
    ],
)
def test_other_patterns_are_refused_while_it_is_attached(before, other):
    plugin = Dropout(before)
    model, session = of_two(plugin)
    rates, told = [model[0].p, model[2].p], session.metrics()
    with pytest.raises(SpecError, match="dropout is attached: detach"):
        plugin.rate = other
    assert [model[0].p, model[2].p] == rates
    assert session.metrics() == told  # nothing of the refused one is left
    plugin.rate = before
    session.detach()
    plugin.rate = {"*": 0.6}
    model, session = of_two(plugin)
    assert [model[0].p, model[2].p] == [0.6, 0.6]
    session.detach()


def test_the_same_patterns_get_other_rates_and_a_number_serves_all():
    plugin = Dropout({"0": 0.1, "*": 0.2})
    model, session = of_two(plugin)
    plugin.rate = {"0": 0.5, "*": 0.6}
    assert [model[0].p, model[2].p] == [0.5, 0.6]
    assert session.metrics()["dropout/rate/0"] == 0.5
    with pytest.raises(SpecError, match="constant"):
        plugin.rate = {"0": schedules.linear(0, 1, steps=3), "*": 0.6}
    assert session.metrics()["dropout/rate/0"] == 0.5
    plugin.rate = 0.7
    assert [model[0].p, model[2].p] == [0.7, 0.7]
    assert set(session.metrics()) == {"dropout/rate"}
    session.detach()


def test_a_rate_out_of_range_in_one_pattern_harms_no_other():
    late = [0.1]
    plugin = Dropout({"0": lambda step: late[0], "*": 0.2})
    _, session = of_two(plugin)
    late[0] = -1.0
    with pytest.raises(SpecError, match="rate"):
        session.metrics()
    late[0] = 0.1
    assert session.metrics() == {"dropout/rate": 0.2, "dropout/rate/0": 0.1, "dropout/rate/*": 0.2}
    session.detach()


def test_rates_by_layer_are_shown_as_they_are():
    """In the model of two, what lies above has the whole rate."""
    plugin = Dropout(regplug.strengths.per_layer(0.5, decay=1.5))
    model, session = of_two(plugin)
    told = session.metrics()
    assert (model[0].p, model[2].p) == (0.75, 0.5)
    assert told == {"dropout/rate": 0.75, "dropout/rate/0": 0.75, "dropout/rate/2": 0.5}
    assert "by pattern: rate/0 0.75, rate/2 0.5" in session.describe()
    plugin.rate = regplug.strengths.per_layer(0.25, decay=1.5)
    assert session.metrics()["dropout/rate"] == model[0].p == 0.375
    with pytest.raises(SpecError, match="rate"):
        plugin.rate = regplug.strengths.per_layer(0.9, decay=1.5)
    assert (model[0].p, model[2].p) == (0.375, 0.25)
    session.detach()
    plugin.rate = {"0": regplug.strengths.per_layer(0.5, decay=0.5), "*": 0.1}
    model, session = of_two(plugin)
    told = session.metrics()
    assert told == {"dropout/rate": 0.25, "dropout/rate/0 0": 0.25, "dropout/rate/*": 0.1}
    session.detach()
    plugin.rate = regplug.strengths.per_layer(0.9, decay=1.5)
    with pytest.raises(SpecError, match="within"):
        of_two(plugin)


def test_the_mean_of_relative_rates_is_theirs():
    plugin = Dropout({"0": 0.5, "*": 2.0}, relative=True)
    model, session = of_two(plugin)
    assert (model[0].p, model[2].p) == (0.2, 0.6)
    assert session.metrics()["dropout/rate"] == pytest.approx(0.4)
    session.detach()
