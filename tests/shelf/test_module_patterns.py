"""Plugins of modules take the patterns that penalties take of parameters."""

import pytest
from torch import nn

import regplug
from regplug.errors import SelectionError
from regplug_builtins import Activity, Dropout


@pytest.fixture
def model() -> nn.Module:
    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Dropout(0.3))

    return nn.ModuleDict({"body": block(), "head": block(), "tail": block()})


@pytest.mark.parametrize(
    ("where", "taken"),
    [
        ("body.*", ["body"]),
        ("!body.*", ["head", "tail"]),
        ("* & !body.*", ["head", "tail"]),
        ("!body.* & !tail.*", ["head"]),
        (["body.*", "* & !tail.*"], ["body", "head"]),
        (["body.*", "head.*", "!head.*"], ["body"]),
    ],
)
def test_patterns_of_modules_narrow_and_exclude(where, taken, model):
    names = ["body", "head", "tail"]
    with regplug.attach(model, plugins=[Dropout(0.5, where=where)]):
        assert [name for name in names if model[name][2].p == 0.5] == taken
    activity = Activity(0.1, where=where)
    with regplug.attach(model, plugins=[activity]) as session:
        watched = activity.notes(session)[0]
        assert [name for name in names if f"{name}.1" in watched] == taken


@pytest.mark.parametrize("where", ["activations & !body.*", "!body.*", ["activations", "!body.*"]])
def test_activations_are_a_word_among_patterns(where, model):
    activity = Activity(0.1, where=where)
    with regplug.attach(model, plugins=[activity]) as session:
        assert activity.notes(session) == ["watches head.1, tail.1"]


@pytest.mark.parametrize("where", [[], "", "!", "a & ", 3, ["a", 3], len])
@pytest.mark.parametrize("make", [Dropout, Activity])
def test_what_is_no_pattern_of_modules_is_refused(make, where):
    with pytest.raises(SelectionError, match="where must"):
        make(0.1, where=where)
