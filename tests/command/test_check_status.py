"""`regplug check` ends with 0 only if the plugin was seen to act, and all else passed."""

import json
import re

import pytest

from regplug.command.cli import main

PLUGINS = """
import regplug

class Good(regplug.Penalty):
    def value(self, w):
        return w.square().sum()

class Wrong(Good):
    def gradient(self, w):
        return w

class Idle(regplug.Plugin):
    strength = regplug.Scheduled()

    def __init__(self, strength=0.01, name=None):
        self.strength, self.name = strength, name

    @regplug.hookimpl
    def on_gradients(self, session):
        pass

class Leaves(Good):
    def value(self, w):
        raise SystemExit(0)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("status") / "own.py"
    path.write_text(PLUGINS, "utf-8")
    return path


@pytest.mark.parametrize(
    ("plugin", "options", "status"),
    [
        ("Good(0.01)", ["--only", "runs,acts,gradient"], 0),
        ("Wrong(0.01)", ["--only", "runs,acts,gradient"], 1),
        ("Wrong(0.01)", ["--only", "runs,acts,gradient", "--expect", "gradient=half"], 0),
        ("Idle(0.01)", ["--only", "runs,acts,gradient"], 1),
        # Expected or not: it was not seen to act.
        ("Idle(0.01)", ["--only", "runs,acts", "--expect", "acts=it is idle"], 1),
        ("Leaves(0.01)", ["--only", "runs,acts"], 1),
        ("Leaves(0.01)", ["--only", "runs,acts", "--expect", "runs=it leaves"], 1),
        ("Good(0.01)", ["--only", "runs", "--expect", "runs=a rumour"], 1),
    ],
)
def test_status(file, plugin, options, status, capsys):
    assert main(["check", f"{file}:{plugin}", "--json", *options]) == status
    results = json.loads(capsys.readouterr().out)
    assert {result["exam"] for result in results} == {2}
    failed = {result["check"] for result in results if result["outcome"] == "failed"}
    assert status or not failed


def test_one_that_fails_of_several_is_enough(file, capsys):
    specs = [f"{file}:{plugin}(0.01)" for plugin in ("Wrong", "Good")]
    assert main(["check", *specs, "--only", "runs,gradient"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("gradient failed: gradient(w) is off by")
    assert re.fullmatch(r".*:Good\(0\.01\): \d passed(, \d skipped)? in .* s", lines[-1])


def test_what_was_not_seen_to_act_is_said_to_have_failed(file, capsys):
    options = ["--only", "runs,acts", "--expect", "acts=it is idle"]
    assert main(["check", f"{file}:Idle(0.01)", *options]) == 1
    assert "it was not seen to act, so it has not passed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spec", "options"),
    [("l1(1e-3)", ["--only", "acs"]), ("no_such_plugin(1)", []), ("l1(1e-3, where='gone.*')", [])],
)
def test_what_can_not_be_examined_has_not_passed(spec, options, capsys):
    assert main(["check", spec, "--json", *options]) == 1
    said = capsys.readouterr()
    assert said.err
    assert not said.out
