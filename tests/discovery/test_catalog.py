"""Plugins are found by name, one at a time, in what is installed."""

import importlib.metadata
import re
import sys
import textwrap

import pytest
import torch

import regplug
from regplug.discovery import catalog
from regplug.errors import PluginError, PluginNotFoundError, SpecError

SMOOTH = """
    import regplug
    class Smooth(regplug.Penalty):
        separable = True
        def value(self, w):
            return w.cosh().log().sum()
"""


def test_installed_plugin_is_found_by_its_entry_point(install):
    install("acme-smooth", [("velvet", "acme_smooth:Smooth")], "2.5", acme_smooth=SMOOTH)
    assert "velvet" in catalog.names()
    assert "acme_smooth" not in sys.modules
    model = torch.nn.Linear(2, 2)
    session = regplug.attach(model, plugins=["velvet(0.5)", "velvet(0.5, name='other')"])
    assert [plugin.name for plugin in session.plugins] == ["velvet", "other"]
    assert session.plugins[0].source == "acme-smooth 2.5"
    assert "acme-smooth 2.5" in session.describe()
    value = 0.5 * model.weight.cosh().log().sum().item()
    assert session.metrics()["velvet/value"] == pytest.approx(value)


def test_instance_of_an_installed_class_has_the_entry_points_name(install):
    install("acme-smooth", [("velvet", "acme_smooth:Smooth")], acme_smooth=SMOOTH)
    assert catalog.load_class("velvet")(0.5).name == "velvet"


def test_class_that_nobody_installed_has_its_own_name_in_snake_case():
    names = {"Smooth": "smooth", "L1Smooth": "l1_smooth", "HTTPNorm": "http_norm", "L0": "l0"}
    for cls, name in names.items():
        plugin = type(cls, (regplug.Plugin,), {"__init__": lambda self: None})()
        assert plugin.name == name
        assert plugin.source == __name__


def test_only_the_named_plugin_is_imported(install):
    """pluggy's load_setuptools_entrypoints imports every plugin, broken ones included."""
    install("acme-good", [("good", "acme_good:Smooth")], acme_good=SMOOTH)
    install("acme-bad", [("bad", "acme_bad:Bad")], acme_bad="raise RuntimeError('no GPU')")
    assert {"good", "bad"} <= set(catalog.names())
    assert catalog.load("good(1)").strength == 1
    assert "acme_bad" not in sys.modules


def test_broken_import_names_the_distribution_and_keeps_the_cause(install):
    install("acme-bad", [("bad", "acme_bad:Bad")], "0.9", acme_bad="raise RuntimeError('no GPU')")
    message = r"plugin 'bad' of acme-bad 0\.9 does not load .*acme_bad:Bad.*RuntimeError: no GPU"
    with pytest.raises(PluginError, match=message) as caught:
        catalog.load("bad(1)")
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("acme_missing:Smooth", "ModuleNotFoundError"),
        ("acme_absent:Plush", "AttributeError.*Plush"),
        ("acme_exit:Smooth", "SystemExit: 3"),
    ],
)
def test_entry_point_that_leads_nowhere_names_the_distribution(install, value, reason):
    modules = {"acme_absent": SMOOTH, "acme_exit": "import sys; sys.exit(3)"}
    install("acme-lost", [("lost", value)], "3.1", **modules)
    with pytest.raises(PluginError, match=rf"acme-lost 3\.1 does not load from {value}: {reason}"):
        catalog.load("lost(1)")


@pytest.mark.parametrize("thing", ["5", "lambda strength: None", "dict", "Smooth(1)", "None"])
def test_entry_point_that_is_no_plugin_class_is_refused(install, thing):
    source = textwrap.dedent(SMOOTH) + f"thing = {thing}\n"
    install("acme-odd", [("odd", "acme_odd:thing")], "1.2", acme_odd=source)
    with pytest.raises(PluginError, match=r"'odd' of acme-odd 1\.2 is .*no subclass of regplug\."):
        catalog.load("odd(1)")


def test_two_distributions_of_one_name_are_an_error_naming_both(install):
    """pluggy silently skips the second of two entry points with one name."""
    install("acme-one", [("velvet", "acme_one:Smooth")], "1.0", acme_one=SMOOTH)
    install("acme-two", [("velvet", "acme_two:Smooth")], "2.0", acme_two=SMOOTH)
    message = r"'velvet' is taken twice, by acme-one 1\.0 .* and acme-two 2\.0"
    with pytest.raises(PluginError, match=message):
        catalog.load("velvet(1)")
    assert catalog.load("l1(1)").name == "l1"


def test_taking_the_name_of_a_built_in_is_an_error(install):
    install("acme-one", [("l1", "acme_one:Smooth")], "1.0", acme_one=SMOOTH)
    mine = re.escape(importlib.metadata.version("regplug"))
    with pytest.raises(PluginError, match=rf"acme-one 1\.0 .* and regplug {mine}"):
        catalog.load("l1(1)")


def test_one_distribution_that_offers_a_name_twice_is_an_error(install):
    both = [("velvet", "acme_one:Smooth"), ("velvet", "acme_one:Other")]
    install("acme-one", both, acme_one=SMOOTH)
    with pytest.raises(PluginError, match="'velvet' is taken twice, by acme-one"):
        catalog.load("velvet(1)")


def test_checkout_that_is_listed_twice_is_one_offer(install):
    """An editable install shows up twice where its folder is on sys.path too."""
    for _ in range(2):
        site = install("acme-one", [("velvet", "acme_one:Smooth")], acme_one=SMOOTH)
        site.rename(site.with_name(f"{site.name}-{_}"))
        sys.path.insert(0, str(site.with_name(f"{site.name}-{_}")))
    try:
        assert sum(e.name == "velvet" for e in importlib.metadata.entry_points(group="regplug")) > 0
        assert catalog.load("velvet(1)").name == "velvet"
    finally:
        del sys.path[:2]


def test_misspelt_name_is_told_the_nearest():
    with pytest.raises(
        PluginNotFoundError, match="'elastic_nte'; the nearest are elastic_net"
    ) as e:
        catalog.load("elastic_nte(1)")
    assert isinstance(e.value, LookupError)
    assert "`regplug plugins` lists all" in str(e.value)


def test_what_is_installed_is_asked_anew_each_time(install):
    with pytest.raises(PluginNotFoundError, match="velvet"):
        catalog.load("velvet(1)")
    install("acme-smooth", [("velvet", "acme_smooth:Smooth")], acme_smooth=SMOOTH)
    assert catalog.load("velvet(1)").name == "velvet"


def test_names_are_sorted_whatever_the_file_system_says(install):
    install("acme-z", [("zz", "z:Z"), ("aa", "a:A")])
    install("acme-a", [("mm", "m:M")])
    assert catalog.names() == sorted(catalog.names())


# Arguments that do not fit


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("l1()", "missing a required argument: 'strength'"),
        ("l1(1, 2)", "too many positional arguments"),
        ("l1(1, strenght=2)", "unexpected keyword argument 'strenght'"),
        ("l1(1, strength=2)", "multiple values for argument 'strength'"),
        ("l1", "missing a required argument"),
    ],
)
def test_arguments_that_do_not_fit_show_the_signature(spec, message):
    with pytest.raises(SpecError, match=message) as caught:
        catalog.load(spec)
    assert str(caught.value).startswith(repr(spec))
    # As `regplug plugins` prints it: a line, without the types.
    assert str(caught.value).endswith(
        "The plugin is l1(strength, *, where='weights', delivery='auto', name=None)"
    )
    assert "\n" not in str(caught.value)


def test_plugin_that_cannot_be_made_is_named(install):
    source = """
        import regplug
        class Moody(regplug.Plugin):
            def __init__(self, mood=None):
                if mood == "type":
                    raise TypeError("no such mood")
                raise OSError("not today")
    """
    install("acme-moody", [("moody", "acme_moody:Moody")], "7", acme_moody=source)
    with pytest.raises(
        PluginError, match=r"moody \(acme-moody 7\) failed on 'moody\(\)'.*not today"
    ):
        catalog.load("moody()")
    with pytest.raises(SpecError, match=r"moody\('type'\).*no such mood"):
        catalog.load("moody('type')")
