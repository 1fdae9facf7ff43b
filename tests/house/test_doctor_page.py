"""docs/doctor.md is true: its code runs, its commands are real, and it lists all that there is."""

import re
import shlex
from pathlib import Path

from regplug.command import cli
from regplug.doctor import checks
from regplug.doctor.decay import CONVENTIONS
from tests.command.forked import command
from tests.command.writing import SGD, write

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_its_code_runs(capsys):
    (block,) = blocks("python")
    exec(compile(block, "docs/doctor.md", "exec"), {"__name__": "page"})
    shown = capsys.readouterr().out
    assert "Sequential with AdamW: 5 real steps, 5 of them looked at" in shown
    for code in ("decayed-twice", "decays-bias-or-norm", "penalizes-bias-or-norm"):
        assert f"warning {code}" in shown


def test_its_commands_are_real(tmp_path):
    write(tmp_path, SGD, "train.py")
    write(tmp_path, "", "package/__init__.py")
    write(tmp_path, SGD, "package/train.py")
    (block,) = blocks("console")
    lines = [shlex.split(line) for line in block.splitlines()]
    assert [line[0] for line in lines] == ["regplug", "regplug", "torchrun"]
    for line in lines:
        ended = command(*line[line.index("doctor") :], cwd=tmp_path)
        assert ended.code == 0, ended.err
        assert "with SGD: 3 real steps" in ended.err
    assert (tmp_path / "out.json").is_file()


def test_it_has_each_finding_and_convention():
    sections = PAGE.partition("## Findings")[2].partition("## What can't")[0]
    told = dict(re.findall(r"^### (\S+)\n(.*?)(?=^### |\Z)", sections, re.DOTALL | re.MULTILINE))
    source = Path(checks.__file__).parent
    text = "".join(path.read_text(encoding="utf-8") for path in source.glob("*.py"))
    # The first argument of a Finding, or of what makes one.
    found = set(re.findall(r'\(\s*"([a-z]+(?:-[a-z]+)+)"', text))
    assert set(told) == found
    for section in told.values():
        for part in ("How it looks", "Why it matters", "The fix", "Reference"):
            assert f"**{part}**" in section
    for convention in CONVENTIONS:
        assert f"| `{convention}` |" in PAGE


def test_the_command_is_listed():
    assert "doctor" in cli.main.__globals__["__doc__"]
