"""The commonest mistakes in naming a plugin: one readable line, with what was probably meant."""

import contextlib
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regplug
from regplug.discovery import catalog
from regplug.errors import PluginNotFoundError, RegplugError, SpecError
from regplug_builtins import L1


def told(plugins):
    """Return the one line that attach ends with, whose guess, if there is one, does attach."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises((SpecError, PluginNotFoundError)) as caught:
        regplug.attach(model, optimizer, plugins)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 300
    assert " at 0x" not in line.partition("did you mean")[2]
    return line


LASSO = "The plugin is l1(strength, *, where='weights', delivery='auto', name=None)"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        # As one spec.
        ("weight-decay(0.1)", "weight_decay(0.1)"),
        ("weight decay(0.1)", "weight_decay(0.1)"),
        ("weight decay 0.1", "weight_decay(0.1)"),
        ("weight-decay=0.1", "weight_decay(0.1)"),
        ("WeightDecay(0.1)", "weight_decay(0.1)"),
        ("WEIGHT_DECAY: 0.1", "weight_decay(0.1)"),
        ("weightdecay(0.1)", "weight_decay(0.1)"),
        ("l1 1e-4", "l1(1e-4)"),
        ("l1: 1e-4", "l1(1e-4)"),
        ("l1:1e-4", "l1(1e-4)"),
        ("l1[1e-4]", "l1(1e-4)"),
        ("l1{1e-4}", "l1(1e-4)"),
        ("L1(1e-4)", "l1(1e-4)"),
        ("L1=1e-4", "l1(1e-4)"),
        ("l1(1e-4", "l1(1e-4)"),
        ("l1(1e-4))", "l1(1e-4)"),
        ("l1(1e-4,,)", "l1(1e-4)"),
        ("l1(1e-4);", "l1(1e-4)"),
        ("'l1(1e-4)'", "l1(1e-4)"),
        ("l1(1e−4)", "l1(1e-4)"),
        ("regplug_builtins.L1(1e-4)", "l1(1e-4)"),
        ("l1(linear(0, 1e-4, steps=9)", "l1(linear(0, 1e-4, steps=9))"),
        ("l1(strenght=1e-4)", "l1(strength=1e-4)"),
        ("l1(strength: 1e-4)", "l1(strength=1e-4)"),
        ("l1(lambda=1e-4)", "l1(strength=1e-4)"),
        ("l1(lam=1e-4)", "l1(strength=1e-4)"),
        ("dropout(p=0.5)", "dropout(rate=0.5)"),
        ("l1(1e-4, wher='all')", "l1(1e-4, where='all')"),
        ("l1(1e-4, where=weights)", "l1(1e-4, where='weights')"),
        ("l1(1e-4, where=*.weight)", "l1(1e-4, where='*.weight')"),
        ("l1(1e-4, delivery=proximal)", "l1(1e-4, delivery='proximal')"),
        ("l1(1e-4, 'weights')", "l1(1e-4, where='weights')"),
        ("weight_decay(0.1, cautious=true)", "weight_decay(0.1, cautious=True)"),
        (b"l1(1e-4)", "l1(1e-4)"),
        # As a member of the list.
        ([{"l1": 1e-4}], "l1(0.0001)"),
        ([("l1", 1e-4)], "l1(0.0001)"),
        ([["l1", 1e-4]], "l1(0.0001)"),
        ([["l1(1e-4)"]], "l1(1e-4)"),
        ([{"name": "l1", "strength": 1e-4}], "l1(strength=0.0001)"),
        # As the list.
        ({"l1": 1e-4}, "l1(0.0001)"),
        ({"l1": {"0.*": regplug.schedules.linear(0, 1, 9)}}, "l1({'0.*': linear(0, 1, steps=9)})"),
        ([{"l1": {"0.weight": 0.1}}], "l1({'0.weight': 0.1})"),
        ({"l1": np.float32(0.5)}, "l1(0.5)"),
        ({"weight-decay": 0.5}, "weight_decay(0.5)"),
        ({"l1": {"strength": 0.5, "where": "all"}}, "l1(strength=0.5, where='all')"),
        ({"elastic_net": [0.5, 0.25]}, "elastic_net(0.5, 0.25)"),
        ({"l1": regplug.schedules.linear(0, 1, 9)}, "l1(linear(0, 1, steps=9))"),
        (("l1", 1e-4), "l1(0.0001)"),
        (["l1", 1e-4], "l1(0.0001)"),
    ],
    ids=repr,
)
def test_what_was_probably_meant_is_told_and_attaches(wrong, right):
    assert f"did you mean {right!r}?" in told(wrong)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.5))
    regplug.attach(model, plugins=[right]).detach()


@pytest.mark.parametrize(
    "wrong",
    [
        "l1(1e-4), l2(1e-3)",
        "l1(1e-4) + l2(1e-3)",
        "l1(1e-4); l2(1e-3)",
        "L1(1e-4) & l2 1e-3",
        ["l1(1e-4), l2(1e-3)"],
        OrderedDict(l1=1e-4, l2=1e-3),
    ],
    ids=repr,
)
def test_several_in_one_are_told_as_a_list(wrong):
    line = told(wrong)
    specs = catalog.load_all(re.findall(r"['\"]([^'\"]+)['\"]", line.partition("did you mean")[2]))
    assert [(p.name, p.strength) for p in specs] == [("l1", 1e-4), ("l2", 1e-3)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("l1", f"missing a required argument: 'strength', as in 'l1(1e-4)'. {LASSO}"),
        ("l1()", f"as in 'l1(1e-4)'. {LASSO}"),
        ("dropout", "'rate'. The plugin is dropout(rate, *, where='*', relative=False, name=None)"),
        (
            "elastic_net(1)",
            "missing a required argument: 'l2'. The plugin is elastic_net(l1, l2, *",
        ),
        ("l1(1, 2)", f"too many positional arguments. {LASSO}"),
        ("l1(1, linear(0, 1, 5))", f"too many positional arguments. {LASSO}"),
        ("l1(1, no=2)", f"got an unexpected keyword argument 'no'. {LASSO}"),
        ("l1(cosine(0, 1, step=5))", "unexpected keyword argument 'step'; the schedule is cosine("),
        ("", "'' is no spec such as 'name(1e-5)': it is the name of a plugin, with its arguments"),
        ("1e-4", "not a call of a plain name"),
        ("l1(1e-4) @ net", "not a call of a plain name"),
        (
            None,
            "plugins must be a list of specs such as 'name(1e-5)' and plugin instances, got None",
        ),
        (1e-4, "plugins must be a list of specs such as 'name(1e-5)' and plugin instances"),
        ({}, "plugins must be a list of specs such as 'name(1e-5)' and plugin instances, got {}"),
        ([None], "a plugin must be a spec (a string) or an instance of regplug.Plugin; got None"),
        (L1, "not the class; got <class 'regplug_builtins.l1.L1'>, of which an instance is L1("),
        ([L1], "of which an instance is L1(strength, *, where='weights', delivery='auto', name=N"),
        ({"l1": "1e-4"}, "plugins must be a list of specs"),  # a strength in quotes is none
        ([torch.nn.L1Loss()], "or an instance of regplug.Plugin; got L1Loss()"),
        (["l1(1e-4)", b"x"], "or an instance of regplug.Plugin; got b'x'"),
    ],
    ids=repr,
)
def test_what_can_not_be_guessed_is_told_in_a_line(wrong, words):
    line = told(wrong)
    assert words in line
    assert "did you mean" not in line


def test_a_class_that_hides_what_it_takes_is_made_all_the_same(install):
    source = """
        import regplug
        class Hidden(regplug.Plugin):
            __signature__ = "hidden"
    """
    install("acme-hidden", [("hidden", "acme_hidden:Hidden")], acme_hidden=source)
    assert catalog.load("hidden()").name == "hidden"


def test_a_broken_plugin_spoils_no_guess(install):
    install("acme-bad", [("bad_one", "acme_bad:Bad")], acme_bad="raise RuntimeError('no')")
    with pytest.raises(SpecError, match="is no spec") as caught:
        catalog.load("bad-one 1e-4")
    assert "did you mean" not in str(caught.value)


things = st.recursive(
    st.none() | st.floats() | st.text(max_size=12) | st.sampled_from(["l1", "l1(1", "where", b"l"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(
            st.text(max_size=4) | st.sampled_from(["l1", "name", "l2"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@given(things)
@settings(max_examples=150, deadline=None)
def test_whatever_stands_for_plugins_only_our_errors_come_out(thing):
    """Catches a TypeError and its like, from deep within."""
    with contextlib.suppress(RegplugError):
        regplug.attach(torch.nn.Linear(2, 2), plugins=thing).detach()
