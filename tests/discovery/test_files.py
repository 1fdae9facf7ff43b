"""Plugins of one file: found where they are, executed once, and what is wrong is said."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regplug
from regplug.discovery.files import anchored, split
from regplug.errors import PluginError, PluginNotFoundError, SpecError

SOURCE = """
import dataclasses
import regplug
from regplug import Penalty

print("executed")

@dataclasses.dataclass
class Settings:
    power: int = 2

class Power(Penalty):
    "λ·Σ|w|^p"
    separable = True

    def __init__(self, strength, power=Settings().power, **options):
        super().__init__(strength, **options)
        self.power = power

    def value(self, w):
        return w.abs().pow(self.power).sum()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE, encoding="utf-8")
    return tmp_path


def attached(spec: str) -> Any:
    torch.manual_seed(0)
    return regplug.attach(nn.Linear(3, 2), plugins=[spec])


@pytest.mark.parametrize(
    "spec",
    [
        "./mine.py:Power(0.5, power=3)",
        "mine.py:Power(0.5, power=3)",
        "{here}/mine.py:Power(0.5, power=3)",
        "mine.py(0.5, power=3)",  # the only one in it
        " mine.py : Power (0.5, power=3)",
    ],
)
def test_a_file_is_named_in_several_ways(spec: str, here: Path) -> None:
    session = attached(spec.format(here=here))
    plugin = session.plugins[0]
    assert (plugin.name, plugin.power, plugin.strength) == ("power", 3, 0.5)
    assert plugin.source.startswith("mine.py ")
    expected = 0.5 * session.model.weight.abs().pow(3).sum().item()
    assert session.metrics()["power/value"] == pytest.approx(expected)


def test_short_forms_and_schedules_are_as_in_any_spec() -> None:
    assert attached("mine.py:Power=0.25").plugins[0].strength == 0.25
    assert attached("mine.py:Power(linear(1, 0, steps=4))").plugins[0].strength == 1.0
    assert attached("mine.py=0.25").plugins[0].strength == 0.25


def test_a_file_is_executed_once_and_again_when_it_was_edited(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = attached("mine.py(1)").plugins[0], attached("./mine.py:Power(1)").plugins[0]
    assert type(first) is type(second)
    assert capsys.readouterr().out == "executed\n"
    (here / "mine.py").write_text(SOURCE.replace("w.abs()", "(2 * w).abs()"), encoding="utf-8")
    third = attached("mine.py(1)").plugins[0]
    assert third.value(torch.ones(1)) == 4 * first.value(torch.ones(1))
    assert third.source != first.source
    assert capsys.readouterr().out == "executed\n"


def test_it_is_pickled_within_its_process() -> None:
    plugin = attached("mine.py(1, power=3)").plugins[0]
    assert pickle.loads(pickle.dumps(plugin)).power == 3


def test_nothing_in_the_spec_itself_is_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    for spec in ("mine.py:Power(print(1))", "mine.py:Power(1)(2)", "mine.py:Power(__import__)"):
        with pytest.raises(SpecError):
            attached(spec)
    assert capsys.readouterr().out == ""  # nor is the file executed


TWO = SOURCE + "\nclass Other(Power):\n    pass\n\nclass _Hidden(Power):\n    pass\n"


@pytest.mark.parametrize(
    ("source", "spec", "kind", "words"),
    [
        (SOURCE, "nowhere.py:Power(1)", PluginNotFoundError, "there is no file nowhere.py"),
        (SOURCE, "mina.py(1)", PluginNotFoundError, "seen from .*; there is mine.py"),
        (SOURCE, "sub/mine.py(1)", PluginNotFoundError, "there is no file sub/mine.py"),
        (SOURCE, "mine.py:Powr(1)", PluginNotFoundError, "has no class Powr: it has Power"),
        (SOURCE, "mine.py:Settings()", PluginError, "no subclass of regplug.Plugin"),
        (SOURCE, "mine.py:2(1)", SpecError, "after the colon comes a class"),
        (SOURCE, "mine.py:a.b(1)", SpecError, "after the colon comes a class"),
        (SOURCE, "mine.py:Power()", SpecError, r"missing a required argument: 'strength'"),
        (SOURCE, "mine.py(-1)", SpecError, "strength must be finite and not negative"),
        (SOURCE, "mine.py(1, pow=2)", SpecError, "unexpected keyword argument 'pow'"),
        ("x = 1", "mine.py(1)", PluginNotFoundError, "defines no subclass of regplug.Plugin"),
        ("from regplug import Penalty", "mine.py(1)", PluginNotFoundError, "defines no subclass"),
        (TWO, "mine.py(1)", SpecError, r"several plugins: say which, 'mine.py:Power\(…\)' or 'mi"),
        ("1 / 0", "mine.py(1)", PluginError, "mine.py does not run: ZeroDivisionError"),
        ("def (", "mine.py(1)", PluginError, "mine.py does not run: SyntaxError"),
        ("raise SystemExit", "mine.py(1)", PluginError, "mine.py does not run: SystemExit"),
        ("import nowhere_at_all", "mine.py(1)", PluginError, "No module named 'nowhere_at_all'"),
    ],
)
def test_what_is_wrong_is_said(
    source: str, spec: str, kind: type[Exception], words: str, here: Path
) -> None:
    (here / "mine.py").write_text(source, encoding="utf-8")
    with pytest.raises(kind, match=words):
        attached(spec)


@pytest.mark.parametrize(
    "spec",
    [
        "penalty (1).py:Power(1)",
        "old(1)/mine.py:Power(1)",
        "a=b.py:Power(1)",
        "'my mine.py':Power(1)",
        "./mine:Power(1)",
        "sub\\mine:Power(1)",
        "mine.ipynb:Power(1)",
        "package/:Power(1)",
    ],
)
def test_a_path_that_no_spec_can_hold_is_told_as_one(spec: str) -> None:
    with pytest.raises(SpecError, match="seems to name a file"):
        attached(spec)


def test_a_folder_of_that_name_is_no_file(here: Path) -> None:
    (here / "folder.py").mkdir()
    with pytest.raises(PluginError, match=r"folder.py can't be read: Is a directory"):
        attached("folder.py(1)")


def test_a_failure_names_the_file(here: Path) -> None:
    (here / "mine.py").write_text(SOURCE.replace("w.abs()", "w.nothing()"), encoding="utf-8")
    session = attached("mine.py(1)")
    with pytest.raises(PluginError, match=r"power \(mine.py \w+\) failed"):
        session.loss(torch.zeros(()))


@pytest.mark.parametrize(
    "spec",
    [
        "l1(1e-3, where='a.py')",
        "l1",
        "a.b(1)",
        "l1=1",
        "l1=1/2",
        "l1(1/2)",
        "f(where='x.py:Y')",
        "py:A(1)",
    ],
)
def test_other_specs_are_left_alone(spec: str) -> None:
    assert split(spec) is None
    assert anchored(spec, Path("/somewhere")) == spec


def test_home_and_absolute_paths_stay(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert attached("~/mine.py(1)").plugins[0].name == "power"
    assert anchored("~/mine.py(1)", Path("/a")) == f"{here}/mine.py(1)"
    assert anchored("/b/mine.py:P(1) @ net", Path("/a")) == "/b/mine.py:P(1) @ net"
