"""docs/engines.md is true: its code runs, its commands are tested, and so is what it names."""

import re
from pathlib import Path

from tests.helpers.accelerating import forget_accelerate

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
TESTS = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))


def rows(heading: str) -> list[list[str]]:
    text = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def test_its_code_runs(capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    try:
        exec(compile(block, "docs/engines.md", "exec"), {"__name__": "page"})
    finally:
        forget_accelerate()
    assert "l1/zeros" in capsys.readouterr().out


def test_each_command_is_of_an_example_that_a_test_launches():
    (block,) = re.findall(r"^```console\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    for command in block.splitlines():
        launcher, option, _, script = command.split()
        assert (launcher, option) == ("torchrun", "--nproc_per_node")
        assert (ROOT / script).is_file()
        assert f'"{Path(script).name}"' in TESTS


def test_the_tests_and_pages_that_it_names_are_there():
    named = re.findall(r"`((?:distributed|engines)/test_\w+\.py)`", PAGE)
    assert len(named) > 12
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []
    for link in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (ROOT / "docs" / link).is_file(), link


def test_each_refusal_has_a_reason_a_way_out_and_a_test():
    refused = rows("What is refused, and why")
    assert len(refused) >= 6
    assert any("FSDP1" in row[0] for row in refused)
    for engine, measured, instead, test in refused:
        assert measured, engine
        assert instead, engine
        assert (ROOT / "tests" / test.strip("`")).is_file(), engine


def test_each_engine_that_works_says_how_it_was_tested():
    for engine, works, tested, communication in rows("What works"):
        assert works, engine
        assert communication, engine
        assert "rank" in tested or tested == "not run", engine
