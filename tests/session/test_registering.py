"""A plugin is registered without reading its attributes, whatever the pluggy."""

import inspect

import pluggy
import pytest
import torch
from torch import nn

import regplug
from regplug.errors import PluginError
from regplug_builtins import Activity, Dropout, GradientNoise


def reads_everything(self, plugin, name):
    """What pluggy 1.5 and 1.6 do in the place of this method."""
    method = getattr(plugin, name)
    if not inspect.isroutine(method):
        return None
    return getattr(method, self.project_name + "_impl", None)


@pytest.fixture(params=["the pluggy that is installed", "a pluggy that reads every attribute"])
def any_pluggy(request, monkeypatch):
    if "every" in request.param:
        monkeypatch.setattr(pluggy.PluginManager, "parse_hookimpl_opts", reads_everything)


class Unread(regplug.Plugin):
    """Has attributes that are not to be read."""

    changes_weights = False
    later = regplug.Scheduled()
    read = ()

    @property
    def needs_a_model(self):
        Unread.read += ("needs_a_model",)
        raise RuntimeError("not attached yet")

    def __getattr__(self, name):
        if not name.startswith("__"):
            Unread.read += (name,)
        raise AttributeError(name)

    @regplug.hookimpl
    def on_metrics(self):
        return {"works": 1.0}


@pytest.mark.usefixtures("any_pluggy")
def test_no_property_is_read_when_a_plugin_registers():
    Unread.read = ()
    with regplug.attach(nn.Linear(2, 2), plugins=[Unread()]) as session:
        assert session.metrics() == {"unread/works": 1.0}
    assert not {"needs_a_model", "later"} & set(Unread.read)


@pytest.mark.usefixtures("any_pluggy")
@pytest.mark.parametrize(
    ("plugin", "metric"),
    [
        (lambda: Dropout(0.5), "dropout/rate"),
        (lambda: Dropout(0.5, relative=True), "dropout/factor"),
        (lambda: Activity(0.5), "activity/l1_strength"),
        (lambda: GradientNoise(0.5), "gradient_noise/eta"),
    ],
)
def test_built_ins_whose_attributes_are_not_all_set_attach(plugin, metric):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Dropout(0.3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [plugin()]) as session:
        assert session.metrics()[metric] == 0.5


@pytest.mark.usefixtures("any_pluggy")
def test_hooks_of_every_kind_are_still_found():
    seen = []

    class Kinds(regplug.Plugin):
        @staticmethod
        @regplug.hookimpl
        def on_attach():
            seen.append("static")

        @classmethod
        @regplug.hookimpl
        def on_detach(cls):
            seen.append("class")

    regplug.attach(nn.Linear(2, 2), plugins=[Kinds()]).detach()
    assert seen == ["static", "class"]


@pytest.mark.usefixtures("any_pluggy")
@pytest.mark.parametrize("kind", [lambda f: f, staticmethod])
def test_a_marked_method_that_is_no_event_is_still_refused(kind):
    class Invents(regplug.Plugin):
        @kind
        @regplug.hookimpl
        def on_tuesday(self):
            raise AssertionError

    with pytest.raises(PluginError, match=r"breaks the hook contract(.|\n)*on_tuesday"):
        regplug.attach(nn.Linear(2, 2), plugins=[Invents()])


def test_an_attribute_that_was_never_set_is_as_one_that_is_missing():
    plugin = Dropout(0.5)
    assert not hasattr(plugin, "factor")
    assert getattr(plugin, "factor", None) is None
    assert dict(inspect.getmembers(plugin))["rate"] == 0.5
    with pytest.raises(PluginError, match=r"Dropout\.factor was never set"):
        _ = plugin.factor
