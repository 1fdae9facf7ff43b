"""Every code block of the README runs, and every command in it exists."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = [
    (match[1], match[2], README[: match.start()].count("\n") + 2)
    for match in BLOCK.finditer(README)
]


def commands() -> Iterator[str]:
    for language, text, _ in BLOCKS:
        if language == "console":
            for line in text.splitlines():
                yield from (part.strip() for part in line.partition("#")[0].split("&&"))


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    assert {language for language, _, _ in BLOCKS} <= {"python", "console", "text", "yaml"}


def test_python_blocks_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    namespace: dict[str, object] = {"__name__": "readme"}
    for language, text, line in BLOCKS:
        if language == "python":
            code = compile("\n" * (line - 1) + text, str(ROOT / "README.md"), "exec")
            exec(code, namespace)


def test_first_block_prints_what_stands_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    (_, code, _), (language, shown, _) = BLOCKS[:2]
    assert language == "text"
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip() == shown.strip()


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_command_exists(command: str, tmp_path: Path) -> None:
    program, *arguments = shlex.split(command)
    scripts = [a for a in arguments if a.endswith(".py")]
    # Others, as gan.py, stand for the reader's own.
    ours = [script for script in scripts if script.startswith("examples/")]
    assert all((ROOT / script).is_file() for script in ours)
    if program == "make":
        done = subprocess.run(
            ["make", "-n", *arguments], cwd=ROOT, capture_output=True, check=False
        )
        assert done.returncode == 0
    elif program == "regplug":
        # What it does is tested with the command; here, that it takes these arguments.
        options = [a for a in arguments if a.startswith("-")]
        page = subprocess.run(
            [sys.executable, "-m", "regplug", arguments[0], "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert all(option.split("=")[0] in page for option in options)
    elif program in ("torchrun", "accelerate", "python"):
        assert scripts or "-m" in arguments
        tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
        assert all(Path(script).stem in tests for script in ours)
    else:
        assert command.startswith(("pip install", "cd regplug-", "pytest"))


def test_links_and_anchors_lead_somewhere() -> None:
    text = BLOCK.sub("", README)
    anchors = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("http"):
            assert (ROOT / target).exists(), target
