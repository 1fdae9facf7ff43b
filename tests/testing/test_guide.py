"""The author's guide is true: its code runs, and its plugins pass the exam."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from regplug import Plugin, hookspecs
from regplug.testing import PluginContract, check_plugin

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "writing.md").read_text("utf-8")
EXAMINED = ("Smooth", "Lasso", "Frobenius", "Huber", "Box", "CompiledBox", "Ramp")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    """The code of the page as one module, imported: what it asserts holds.

    The last block holds an exam, and ranks import the module, too: a test of its own executes it.
    """
    folder = tmp_path_factory.mktemp("guide")
    (folder / "guide.py").write_text("\n\n".join(blocks("python")[:-1]), "utf-8")
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("guide")
    finally:
        sys.path.remove(str(folder))
        del sys.modules["guide"]


def test_all_plugins_of_the_guide_are_examined(guide):
    found = {
        name for name, c in vars(guide).items() if isinstance(c, type) and issubclass(c, Plugin)
    }
    assert found == set(EXAMINED)


# A penalty and one with a memory; `make soak` has all.
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in ("Smooth", "Ramp") else pytest.mark.slow) for n in EXAMINED],
)
def test_plugin_of_the_guide_passes_the_exam(guide, name):
    report = check_plugin(getattr(guide, name)(0.05))
    assert report.passed, str(report)


def test_exam_of_the_guide_is_passed(guide):
    last = blocks("python")[-1]
    assert "check_plugin(" in last
    exec(last, dict(vars(guide)))


def test_contracts_of_the_guide_hold_for_what_is_installed_nowhere(guide):
    for contract in (guide.TestBox, guide.TestRamp):
        assert issubclass(contract, PluginContract)
        contract().test_accumulation()
        contract().test_ddp()


def test_entry_point_of_the_guide_names_its_class(guide):
    (text,) = blocks("toml")
    table = tomllib.loads(text)["project"]["entry-points"]["regplug"]
    assert table == {"smooth": "guide:Smooth"}
    assert len(text.splitlines()) <= 3


def test_first_plugin_has_ten_lines():
    first = blocks("python")[0].splitlines()
    assert len([line for line in first if line.strip()]) <= 10


def test_guide_names_every_hook():
    hooks = {n for n, f in vars(hookspecs).items() if hasattr(f, "regplug_spec")}
    hooks -= {"on_closure"}  # of use to terms of the objective alone, which Penalty sees to
    assert hooks <= set(re.findall(r"\b(?:on_\w+|before_step|after_step)\b", GUIDE))
