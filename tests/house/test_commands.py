"""The commands that the documentation shows are real, and print what it says they print."""

import importlib.metadata
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from tests.house.pages import ROOT, Block, pages

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TESTS = "\n".join(
    path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "tests").rglob("test_*.py"))
    if path.name != "test_commands.py"
)
COMMANDS = sorted({command for page in pages() for command in page.commands})
OUTPUTS = [pair for page in pages() for pair in page.outputs]

# Scripts that pages call the reader's own; each takes two steps.
OWN = {
    "gan.py": """
        Discriminator = type("Discriminator", (torch.nn.Linear,), {})
        netG, netD = torch.nn.Linear(2, 2), Discriminator(2, 2)
        for net in (netG, netD):
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            for _ in range(2):
                net(torch.ones(1, 2)).sum().backward()
                optimizer.step()
        """,
    "my_penalty.py": """
        import regplug
        class MyPenalty(regplug.Penalty):
            separable = True
            def value(self, w):
                return w.cosh().log().sum()
        """,
    "train.py": """
        net = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(2):
            net(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        """,
}


def regplug_command(arguments: list[str], folder: Path) -> str:
    """Run it for real; a script or module of the reader's own is one of ``OWN``."""
    (folder / "package").mkdir(exist_ok=True)
    for name, text in OWN.items():
        source = "import torch\n" + inspect.cleandoc(text)
        (folder / name).write_text(source, encoding="utf-8")
        (folder / "package" / name).write_text(source, encoding="utf-8")
    arguments = [str(ROOT / a) if a.startswith("examples/") else a for a in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "regplug", *arguments],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def make_target(target: str) -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert target in phony.split()
    (recipe,) = re.findall(rf"^{target}:.* ## .+\n((?:\t.*\n)*)", MAKEFILE, re.MULTILINE)
    assert recipe
    for script in re.findall(r"\$\(BIN\)/python (\S+\.py)", recipe):
        assert (ROOT / script).is_file()
    dry = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False)
    assert dry.returncode == 0


def example(script: str, options: list[str]) -> None:
    """An example that another test runs (in its short form), with options that it has."""
    path = ROOT / script
    assert script.startswith(("examples/", "docs/pictures/"))
    assert f'"{path.name}"' in TESTS
    source = path.read_text(encoding="utf-8")
    assert all(f'"{option}"' in source for option in options if option.startswith("--"))


def launched(arguments: list[str], folder: Path) -> None:
    """What stands behind a launcher, alone: launchers are tested with real processes elsewhere."""
    if arguments[:2] == ["-m", "regplug"]:
        assert "2 real steps" in regplug_command(arguments[2:], folder)
    else:
        example(arguments[0], arguments[1:])


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_real(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):  # what is set for it alone, of which pages' tests see
        words = words[1:]
    program, *arguments = words
    if program == "make":
        target, *settings = arguments
        make_target(target)
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for setting in settings:
            name, given, _ = setting.partition("=")
            assert given
            assert f"\n{name} ?=" in makefile
    elif program == "regplug":
        if arguments[0] == "check":
            # An exam of all regimes, which tests/testing sits; here, that the command takes this.
            assert "SPEC" in regplug_command(["check", "--help"], tmp_path).upper()
        elif arguments not in (["run"], ["doctor"]):  # the command is named, not shown
            regplug_command(arguments, tmp_path)
    elif program == "python":
        example(arguments[0], arguments[1:])
    elif program == "torchrun":
        parsed = get_args_parser().parse_args(arguments)
        script = ["-m", parsed.training_script] if parsed.module else [parsed.training_script]
        launched([*script, *parsed.training_script_args], tmp_path)
    elif program == "accelerate":
        assert arguments[0] == "launch"
        parsed = launch_command_parser().parse_args([*arguments[1:], "script.py"])
        if parsed.training_script != "script.py":
            script = ["-m", parsed.training_script] if parsed.module else [parsed.training_script]
            launched([*script, *parsed.training_script_args[:-1]], tmp_path)
    elif program == "pip":
        assert arguments[0] == "install"
        *editable, what = arguments[1:]
        if what.startswith("./"):
            # The folder that the command above it makes, as a test of the exam does for real. What
            # is installed as a copy would be tested in its stead, and nothing brings pytest.
            assert editable == ["--editable"]
            made = re.fullmatch(r"\./regplug-(\w+)\[test\]", what)
            assert made
            assert f"regplug new {made[1]}" in COMMANDS
        else:
            match = re.fullmatch(r"(?:regplug|\.)(?:\[(.*)\])?", what)
            assert match
            assert not editable
            known = importlib.metadata.metadata("regplug").get_all("Provides-Extra")
            assert set(filter(None, (match[1] or "").split(","))) <= set(known)
    else:
        assert command in ("cd regplug-smoothness", "pytest")


@pytest.mark.parametrize(("block", "below"), OUTPUTS, ids=lambda block: block.text[:40].strip())
def test_output_of_a_command_is_what_stands_below_it(
    block: Block, below: Block, tmp_path: Path
) -> None:
    program, *arguments = shlex.split(block.text)
    assert program == "regplug"
    told = regplug_command(arguments, tmp_path).splitlines()
    first, *shown = below.text.splitlines()
    assert first == "…"
    # Another machine's rounding moves the figures, and nothing else.
    figures = re.compile(r"\d+(\.\d+)?")
    alike = [figures.sub("0", line) for line in told]
    assert [line for line in shown if figures.sub("0", line) not in alike] == []
