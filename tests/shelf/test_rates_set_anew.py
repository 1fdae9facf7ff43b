"""A rate that is set while the plugin is attached reaches the modules, or is refused."""

import pytest
import torch

import regplug
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
