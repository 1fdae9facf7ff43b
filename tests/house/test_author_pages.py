"""Pages that show whole files: they are written, used by what comes next, and that prints so."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.criterions import hide_those_left

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["one_file.md"]
FENCE = re.compile(r"^```(\w+)(?: title=(\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", PAGES)
def test_its_code_runs_and_prints_what_stands_below(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of one page share their names; a file with a title is written for what comes next."""
    monkeypatch.chdir(tmp_path)
    hide_those_left(monkeypatch)
    page = (DOCS / name).read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "page"}
    printed, compared = None, 0
    for match in FENCE.finditer(page):
        language, title, text = match.groups()
        line = page[: match.start()].count("\n") + 1
        if title is not None:
            (tmp_path / title).write_text(text, encoding="utf-8")
        elif language == "python":
            code = compile("\n" * line + text, str(DOCS / name), "exec")
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(code, namespace)
            printed = output.getvalue()
        elif language == "console":
            printed = _typed(text)
        elif language == "text":
            assert printed is not None, f"line {line}: nothing prints this"
            assert printed.strip() == text.strip(), f"line {line}"
            printed, compared = None, compared + 1
        else:
            pytest.fail(f"line {line}: nothing checks a block of {language}")
    assert compared


def _typed(text: str) -> str:
    """Run the lines of a console; what comes after a # is a word to the reader."""
    printed = []
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        settings = dict(w.split("=", 1) for w in words if re.match(r"[A-Z_]+=", w))
        words = words[len(settings) :]
        assert words[0] == "regplug", line
        done = subprocess.run(
            [sys.executable, "-m", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**os.environ, **settings},
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    return "".join(printed)
