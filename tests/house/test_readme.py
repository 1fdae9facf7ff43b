"""The README is true: its code runs, prints what it shows, and its commands are real ones."""

import contextlib
import importlib.metadata
import inspect
import io
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from PIL import Image
from torch import nn
from torch.distributed.run import get_args_parser
from torch.nn.parallel import DistributedDataParallel

import regplug
from regplug import errors, schedules
from regplug.discovery import catalog
from regplug.penalty import DELIVERIES
from tests.helpers.pair import Pair

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TESTS = "\n".join(
    path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "tests").rglob("test_*.py"))
    if path.name != "test_readme.py"
)
FLAGS = re.DOTALL | re.MULTILINE
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", FLAGS)


@dataclass(frozen=True)
class Block:
    """One fenced block, and the language of the one that stands right before it."""

    language: str
    text: str
    line: int
    after: str


def _blocks() -> list[Block]:
    found: list[Block] = []
    end = 0
    for match in FENCE.finditer(README):
        after = found[-1].language if found and not README[end : match.start()].strip() else ""
        found.append(Block(match[1], match[2], README[: match.start()].count("\n") + 2, after))
        end = match.end()
    return found


BLOCKS = _blocks()
PROSE = FENCE.sub("", README)


def section(heading: str) -> str:
    match = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", README, FLAGS)
    assert match, heading
    return match[1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the Markdown tables in ``text``, without heads and rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = [i for i, row in enumerate(cells) if all(re.fullmatch(":?-+:?", c) for c in row)]
    assert rules
    return [row for i, row in enumerate(cells) if i not in rules and i + 1 not in rules]


# --- code --------------------------------------------------------------------------------------


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    for block in BLOCKS:
        if block.language == "text":
            # What the code or the command above it prints, or the ranks' message.
            known = block.after in ("python", "console") or "the ranks differ" in block.text
            assert known, f"line {block.line}: nothing checks this block"
        else:
            assert block.language in ("python", "console", "yaml"), f"line {block.line}"


def test_python_blocks_run_one_after_the_other_and_print_what_stands_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    namespace: dict[str, object] = {"__name__": "readme"}
    compared = 0
    for block, below in zip(BLOCKS, [*BLOCKS[1:], None], strict=True):
        if block.language != "python":
            continue
        # With its line number, so that a failure points into the README.
        code = compile("\n" * (block.line - 1) + block.text, str(ROOT / "README.md"), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        if below is not None and (below.language, below.after) == ("text", "python"):
            assert printed.getvalue().strip() == below.text.strip(), f"line {below.line}"
            compared += 1
    assert compared >= 2


def disagree(rank: int) -> str:
    model = DistributedDataParallel(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        regplug.attach(model, optimizer, [("l1(0.1)", "l1(0.2)")[rank]])
    except errors.RegplugError as error:
        return f"{type(error).__name__}: {error}"
    return "agreed"


def test_message_of_ranks_that_differ(pair: Pair) -> None:
    (shown,) = [b.text for b in BLOCKS if b.language == "text" and b.after == ""]
    assert pair.run(disagree) == [shown.strip()] * 2


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=lambda b: b.line)
def test_configuration_is_one_that_accelerate_reads(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(block.text, encoding="utf-8")
    config = load_config_from_file(str(file))
    assert str(config.distributed_type.value) in block.text
    assert config.num_processes == 8
    if "fsdp_config" in block.text:
        options = {action.dest for action in launch_command_parser()._actions}
        assert set(config.fsdp_config) <= options
        assert config.fsdp_config["fsdp_version"] == 2


# --- commands ----------------------------------------------------------------------------------

SHOWN = ("text", "console")


def _commands() -> list[str]:
    fenced = [
        part.strip()
        for block in BLOCKS
        if block.language == "console"
        for line in block.text.splitlines()
        for part in line.partition("  #")[0].split("&&")
    ]
    programs = "make|python|regplug|torchrun|accelerate launch|pip install"
    inline = re.findall(rf"`((?:{programs}) [^`…]+)`", PROSE)
    # What these print is shown, and compared, by a test of their own.
    compared = {a.text.strip() for a, b in pairwise(BLOCKS) if (b.language, b.after) == SHOWN}
    return sorted({*fenced, *inline} - compared)


# Scripts that the README calls the reader's own; each takes two steps.
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
    assert script.startswith("examples/")
    assert f'"{path.name}"' in TESTS
    source = path.read_text(encoding="utf-8")
    assert all(f'"{option}"' in source for option in options if option.startswith("--"))


def launched(arguments: list[str], folder: Path) -> None:
    """What stands behind a launcher, alone: launchers are tested with real processes elsewhere."""
    if arguments[:2] == ["-m", "regplug"]:
        assert "2 real steps" in regplug_command(arguments[2:], folder)
    else:
        example(arguments[0], arguments[1:])


@pytest.mark.parametrize("command", _commands())
def test_command_is_real(command: str, tmp_path: Path) -> None:
    program, *arguments = shlex.split(command)
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
        elif arguments != ["run"]:
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
            assert f"regplug new {made[1]}" in _commands()
        else:
            match = re.fullmatch(r"(?:regplug|\.)(?:\[(.*)\])?", what)
            assert match
            assert not editable
            known = importlib.metadata.metadata("regplug").get_all("Provides-Extra")
            assert set(filter(None, (match[1] or "").split(","))) <= set(known)
    else:
        assert command in ("cd regplug-smoothness", "pytest")


def test_output_of_a_command_is_what_stands_below_it(tmp_path: Path) -> None:
    for block, below in pairwise(BLOCKS):
        if (below.language, below.after) == SHOWN:
            program, *arguments = shlex.split(block.text)
            assert program == "regplug"
            told = regplug_command(arguments, tmp_path).splitlines()
            first, *shown = below.text.splitlines()
            assert first == "…"
            # Another machine's rounding moves the figures, and nothing else.
            figures = re.compile(r"\d+(\.\d+)?")
            alike = [figures.sub("0", line) for line in told]
            assert [line for line in shown if figures.sub("0", line) not in alike] == []


# --- what the text states ----------------------------------------------------------------------


def test_demo_is_shown_as_it_was_written() -> None:
    written = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    table, _, specs = written.strip().split("\n\n")
    assert table in section("The demo")
    assert specs in section("The demo")
    with Image.open(ROOT / "docs" / "demo.png") as picture:
        assert picture.text["Description"] == specs
    assert (ROOT / "docs" / "demo.png").stat().st_size < 300_000


def test_demo_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    for name in ("demo", "demo_picture", "demo_table"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    variants = importlib.import_module("demo").VARIANTS
    text = section("The demo")
    assert [row[0] for row in rows(text)] == list(variants)
    shown = dict(re.findall(r"^- ([a-z0-9_ ]+): (.*)$", text, re.MULTILINE))
    assert {name: re.findall("`(.*?)`", specs) for name, specs in shown.items()} == {
        name: specs for name, specs in variants.items() if specs
    }


def test_deliveries_are_all_there() -> None:
    table = rows(section("How a penalty reaches the weights"))
    named = [re.findall(r'`"(\w+)"`', row[0]) for row in table]
    assert sorted(name for (name,) in named) == sorted(DELIVERIES)


def test_selections_are_ones_that_are_accepted() -> None:
    model = nn.ModuleDict({"encoder": nn.ModuleDict({"embed": nn.Embedding(3, 2)})})
    model["head"] = nn.Linear(2, 2)
    for row in rows(section("Which parameters")):
        (where,) = re.findall(r"^`(.*?)`", row[0])
        where = where.replace("…", "name == 'head.bias'")
        assert regplug.Selection(eval(where)).of(model)


def test_schedules_are_written_as_they_are() -> None:
    text = section("Strength over time")
    for name in ("constant", "linear", "cosine", "exponential", "warmup"):
        form = f"{name}({', '.join(inspect.signature(getattr(schedules, name)).parameters)})"
        assert f"`{form}`" in text
    assert "`piecewise({step: value})`" in text


def test_every_built_in_is_named() -> None:
    text = section("The plugins")
    ours = [offer.name for offer in catalog.offers() if offer.source.startswith("regplug ")]
    assert len(ours) > 5
    assert [name for name in ours if not re.search(rf"`{name}\b", text)] == []


def test_every_error_is_explained() -> None:
    explained = {}
    for row in rows(section("What each error means")):
        name, *bases = re.findall("`(.*?)`", row[0])
        explained[name] = bases
    assert set(explained) == set(errors.__all__) - {"RegplugError"}
    for name, bases in explained.items():
        cls = getattr(errors, name)
        assert bases == [b.__name__ for b in cls.__bases__ if b is not errors.RegplugError]


def test_links_and_anchors_lead_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", PROSE, re.MULTILINE)
    }
    targets = re.findall(r"\]\(([^)]+)\)", PROSE)
    assert targets
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("http"):
            assert (ROOT / target).exists(), target
