"""docs/exam.md is true: it defines each check, its version is the code's, and its code runs."""

import inspect
import re
from pathlib import Path

from regplug.testing import CHECKS, EXAM
from regplug.testing.registry import FOUNDATIONS, registered
from regplug.testing.report import OUTCOMES

FILE = Path(__file__).resolve().parents[2] / "docs" / "exam.md"
HEAD = "| check | what it proves | not judged after |\n| --- | --- | --- |\n"


def table():
    """Return the lines that the page must have, from the docstrings of the checks."""
    lines = []
    for check in registered():
        summary = (inspect.getdoc(check.cases) or "").partition("\n")[0]
        after = [f"`{e}`" for e in dict.fromkeys(check.after) if e not in FOUNDATIONS]
        lines.append(f"| `{check.id}` | {summary} | {', '.join(after) or '–'} |\n")
    return "".join(lines)


def shown(page):
    return page.partition(HEAD)[2].partition("\n\n")[0] + "\n"


def test_it_defines_every_check():
    page = FILE.read_text("utf-8")
    assert shown(page) == table()
    assert re.findall(r"^\| `([\w-]+)` \|", shown(page), re.MULTILINE) == list(CHECKS)


def test_it_names_the_checks_that_all_others_depend_on():
    told = FILE.read_text("utf-8").partition("## The checks")[2].partition("<!--")[0]
    named = told.partition("one of these failed")[0]
    assert re.findall(r"`([\w-]+)`", named) == list(FOUNDATIONS)


def test_its_version_and_outcomes_are_those_of_the_code():
    page = FILE.read_text("utf-8")
    assert f"**exam {EXAM}**" in page
    outcomes = page.partition("| outcome | meaning |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| ([a-z ]+) \|", outcomes, re.MULTILINE)) == set(OUTCOMES)


def test_its_code_runs(capsys):
    for block in re.findall(
        r"^```python\n(.*?)^```$", FILE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    ):
        exec(compile(block, "docs/exam.md", "exec"), {"__name__": "page"})
    assert "l1(1e-3): 12 passed" in capsys.readouterr().out


if __name__ == "__main__":
    page = FILE.read_text("utf-8")
    before, _, rest = page.partition(HEAD)
    rest = re.sub(r"\A(\|.*\n)*", "", rest)
    FILE.write_text(before + HEAD + table() + rest, "utf-8")
