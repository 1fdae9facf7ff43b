"""Plugins that break the contract are told apart from those that don't, by name, at once.

The packages are real to `importlib.metadata`: a folder with a module and the metadata of an
installed distribution, on ``sys.path``.
"""

import importlib
import sys
import textwrap

import pytest
import torch

import regplug
from regplug.command.cli import main
from regplug.errors import PluginError, SpecError


@pytest.fixture
def install(install, monkeypatch):
    """Return a function that installs a distribution with one module and its entry points."""

    def installed(distribution, code, version="2.5", **entry_points):
        module = distribution.replace("-", "_")
        offers = [(name, f"{module}:{target}") for name, target in entry_points.items()]
        source = "import regplug\n" + textwrap.dedent(code)
        install(distribution, offers, version, **{module: source})
        importlib.invalidate_caches()
        # A module of an earlier test must not stand in for this one.
        monkeypatch.delitem(sys.modules, module, raising=False)

    return installed


def attach(*plugins):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return regplug.attach(model, optimizer, plugins)


def test_unknown_hook_name(install):
    install(
        "bad-hook",
        """
        class Late(regplug.Plugin):
            @regplug.hookimpl
            def after_setp(self, session): ...
        """,
        late="Late",
    )
    with pytest.raises(PluginError, match=r"late \(bad-hook 2\.5\).*after_setp"):
        attach("l1(1e-3)", "late()")


def test_wrong_hook_signature(install):
    install(
        "bad-signature",
        """
        class Greedy(regplug.Plugin):
            @regplug.hookimpl
            def after_step(self, session, model): ...
        """,
        greedy="Greedy",
    )
    with pytest.raises(PluginError, match=r"greedy \(bad-signature 2\.5\)[\s\S]*model"):
        attach("greedy()")


def test_hook_without_the_marker(install):
    install(
        "bad-marker",
        """
        class Bare(regplug.Plugin):
            def before_step(self, session): ...
        """,
        bare="Bare",
    )
    with pytest.raises(PluginError, match=r"bare \(bad-marker 2\.5\): before_step .*hookimpl"):
        attach("bare()")


def test_name_of_two_distributions(install):
    code = """
        class Twin(regplug.Plugin):
            pass
    """
    install("twin-a", code, twin="Twin")
    install("twin-b", code, version="0.1", twin="Twin")
    with pytest.raises(PluginError, match=r"twin.*twin-a 2\.5.*twin-b 0\.1"):
        attach("twin()")


def test_entry_point_that_is_no_plugin_class(install):
    install("bad-class", "def function(strength): ...\n", function="function", gone="gone")
    with pytest.raises(PluginError, match=r"'function' of bad-class 2\.5 .* no subclass"):
        attach("function(1)")
    with pytest.raises(PluginError, match=r"'gone' of bad-class 2\.5 does not load"):
        attach("gone()")


def test_module_that_does_not_import(install):
    install("bad-import", "import no_such_module_at_all\n", unimportable="Any")
    with pytest.raises(PluginError, match=r"unimportable.*bad-import 2\.5.*no_such_module_at_all"):
        attach("unimportable(1)")


def test_missing_constructor_argument(install):
    install(
        "bad-spec",
        """
        class Needs(regplug.Penalty):
            def __init__(self, strength, size): ...
        """,
        needs="Needs",
    )
    with pytest.raises(SpecError, match=r"needs\(1e-3\).*size.*needs\(strength, size\)"):
        attach("needs(1e-3)")


def test_constructor_that_raises(install):
    install(
        "bad-init",
        """
        class Stumbles(regplug.Plugin):
            def __init__(self):
                {}["no such key"]
        """,
        stumbles="Stumbles",
    )
    with pytest.raises(PluginError, match=r"stumbles \(bad-init 2\.5\).*KeyError"):
        attach("stumbles()")


def test_broken_plugins_disturb_no_other(install, capsys):
    install("bad-import", "import no_such_module_at_all\n", unimportable="Any", l2_too="Any")
    code = "class Twin(regplug.Plugin): ...\n"
    install("twin-a", code, twin="Twin")
    install("twin-b", code, twin="Twin")
    install(
        "good",
        """
        class Good(regplug.Penalty):
            "Is good."
            def value(self, w):
                return w.sum()
        """,
        good="Good",
    )
    with attach("l1(1e-3)", "good(1e-3)") as session:
        assert [plugin.name for plugin in session.plugins] == ["l1", "good"]

    assert main(["plugins"]) == 0
    out = capsys.readouterr().out
    lines = {line.partition(" ")[0]: line for line in out.splitlines()}
    assert "Is good." in lines["good"]
    assert "good 2.5" in lines["good"]
    assert "broken" in lines["unimportable"]
    assert "broken" in lines["twin"]
    assert "no_such_module_at_all" in out
    assert "twin-a 2.5" in out.rpartition("twin:")[2]
    assert "The lasso penalty" in lines["l1"]
