"""A plugin is registered without reading its attributes, whatever the pluggy."""

import inspect
import json
import subprocess
import sys
import textwrap

import pluggy
import pytest
import torch
from torch import nn

import regplug
from regplug.backend import marks
from regplug.errors import PluginError, UnsupportedError
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


@pytest.mark.parametrize("renamed", [False, True])
def test_hooks_are_known_by_whatever_pluggy_marks_them_with(renamed):
    code = f"""
        import pluggy
        if {renamed}:
            class Impl(pluggy.HookimplMarker): ...
            class Spec(pluggy.HookspecMarker): ...
            impl, spec = pluggy.HookimplMarker("regplug"), pluggy.HookspecMarker("regplug")
            Impl.__call__ = lambda self, f=None, **m: renamed(impl, "impl", f, m)
            Spec.__call__ = lambda self, f=None, **m: renamed(spec, "spec", f, m)
            def renamed(marker, name, function, more):
                if function is None:
                    return lambda function: renamed(marker, name, function, more)
                marker(function, **more)
                vars(function)["_" + name] = vars(function).pop("regplug_" + name)
                return function
            pluggy.HookimplMarker, pluggy.HookspecMarker = Impl, Spec
            own = pluggy.PluginManager
            own.parse_hookimpl_opts = lambda self, plugin, name: getattr(
                getattr(plugin, name), "_impl", None
            )
            own.parse_hookspec_opts = lambda self, module, name: getattr(
                getattr(module, name), "_spec", None
            )
        import torch, regplug, warnings
        warnings.simplefilter("error")
        model = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.constant_(model.weight, 2.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.25)
        specs = ["weight_decay(0.5, existing='replace')", "l2(0.5)"]
        class Watcher(regplug.Plugin):
            @regplug.hookimpl
            def after_step(self, session):
                self.seen = session.steps
        with regplug.attach(model, optimizer, [*specs, Watcher()]) as session:
            (0 * model(torch.ones(1, 2))).sum().backward()
            optimizer.step()
            print(session.steps, session.plugins[2].seen, session.plugins[2].acts(session))
            print(model.weight.tolist())
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    first, second = ended.stdout.splitlines()
    assert first == "1 0 after_step"
    # Adam's first step is lr, whatever the gradient.
    assert json.loads(second) == [[pytest.approx(2 * 0.95 - 0.1, abs=1e-6)] * 2]


def test_a_pluggy_that_marks_no_function_is_told_of():
    with pytest.raises(UnsupportedError, match=r"pluggy .* does not mark .*\(but by \[\]\)"):
        marks.mark_of(lambda function: function)
