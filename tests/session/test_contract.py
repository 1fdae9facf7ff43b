"""A plugin says which version of the hook contract it needs; another one is refused."""

import pytest
import torch

import regplug
from regplug import hookspecs
from regplug.errors import PluginError


def attach(requires):
    class Written(regplug.Penalty):
        def value(self, w):
            return w.square().sum()

    if requires is not None:
        Written.requires = requires
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, [Written(1e-3)]).detach()


MAJOR, MINOR = map(int, hookspecs.VERSION.split("."))


@pytest.mark.parametrize("requires", [None, f"{MAJOR}.0", hookspecs.VERSION])
def test_what_is_served_attaches(requires):
    attach(requires)


@pytest.mark.parametrize(
    ("requires", "way_out"),
    [
        (f"{MAJOR}.{MINOR + 1}", "upgrade regplug"),
        (f"{MAJOR + 1}.0", "upgrade regplug"),
        (f"{MAJOR - 1}.9", "upgrade the plugin"),
    ],
)
def test_another_version_is_refused_with_the_way_out(requires, way_out):
    with pytest.raises(PluginError, match=rf"written .* {requires} .*{way_out}"):
        attach(requires)


@pytest.mark.parametrize("requires", ["1", "one.two", 1.0, None.__class__, ">=1.0"])
def test_what_is_no_version_is_told(requires):
    with pytest.raises(PluginError, match=r"written as '1\.0'"):
        attach(requires)


def test_versions_are_compared_as_numbers(monkeypatch):
    monkeypatch.setattr(hookspecs, "VERSION", "1.10")
    assert hookspecs.serves("1.9")
    assert not hookspecs.serves("1.11")
