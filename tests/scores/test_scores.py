"""docs/scores.md is true: its table lists the adapters; each failure is shown without regplug."""

import ast
import os
import re
import warnings
from pathlib import Path

import pytest

from regplug.testing import Report, Result, check_plugin
from tests.helpers import generated
from tests.house.pages import Page
from tests.scores import run

HERE = Path(__file__).parent
PAGE = Page(run.PAGE)
assert run.PAGE.name == "scores.md"
TABLE = run.table(generated.written(run.PAGE, run.COMMAND))
SECTIONS = dict(re.findall(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", PAGE.text, re.DOTALL | re.MULTILINE))
OPTIONAL = {"proxtorch": "proxtorch", "pytorch_optimizer": "pytorch_optimizer", "keras": "keras"}


def needed(module: str) -> None:
    if not run.is_installed(run.MODULES[module]):
        pytest.skip(f"{run.MODULES[module]} is not installed: it comes with the extra `scores`")
    os.environ["KERAS_BACKEND"] = "torch"  # read when it is imported first


def test_there_are_at_least_twenty() -> None:
    assert len(TABLE) >= 20


@pytest.mark.parametrize("module", run.MODULES)
def test_table_lists_the_adapters(module: str) -> None:
    # Read, not imported: the library need not be there.
    source = (HERE / f"{module}.py").read_text(encoding="utf-8")
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
    found = [
        " ".join(ast.literal_eval(argument) for argument in call.args[:2])
        for call in calls
        if getattr(call.func, "id", None) == "Entry"
    ]
    assert found == [key for key, line in TABLE.items() if f"[{module}]" in line]


@pytest.mark.parametrize("key", TABLE)
def test_each_failure_has_a_section_of_its_own(key: str) -> None:
    passed, judged = map(int, re.findall(r"\| (\d+) / (\d+) \|", TABLE[key])[0])
    failed = TABLE[key].count("[`") and len(re.findall(r"`[\w-]+`[,\]]", TABLE[key]))
    assert judged - passed == failed
    assert (key in SECTIONS) == bool(failed)


@pytest.mark.parametrize("key", SECTIONS)
# Torch's own, where its compiler is imported.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_failure_is_seen_without_regplug(key: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", SECTIONS[key], re.DOTALL)
    assert "regplug" not in code
    lines = [line for line in code.splitlines() if line and not re.match("import|from", line)]
    assert len(lines) <= 6
    library = key.partition(" ")[0]
    if library in OPTIONAL and not run.is_installed(OPTIONAL[library]):
        pytest.skip(f"{library} is not installed: it comes with the extra `scores`")
    os.environ["KERAS_BACKEND"] = "torch"
    exec(compile(code, "docs/scores.md", "exec"), {"__name__": "page"})


@pytest.mark.parametrize("module", run.MODULES)
def test_an_adapter_sits_the_exam(module: str) -> None:
    needed(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's import
        entry = run.entries(module)[-1]
    report = check_plugin(entry.make(), checks=["runs", "acts"])
    assert report.passed, str(report)


def test_a_check_counts_once_whatever_the_number_of_its_regimes() -> None:
    outcomes = [("a", "passed"), ("a", "failed"), ("b", "passed"), ("b", "skipped")]
    outcomes += [("c", "skipped"), ("d", "not judged")]
    results = [Result("p", check, str(i), outcome) for i, (check, outcome) in enumerate(outcomes)]
    score = run.scored(Report("p", results, 1.0), "of_torch", "torch x")
    assert (score.passed, score.failed) == (("b",), ("a",))
    assert (score.not_judged, score.skipped) == (("d",), ("c",))
