"""The documentation is true: its code runs, prints what it shows, and its links lead somewhere."""

import contextlib
import importlib
import inspect
import io
import re
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import regplug
from regplug import errors
from tests.helpers.pair import Pair
from tests.house.pages import DOCS, MODULES, ROOT, Block, Page, page, pages

PAGES = {each.name: each for each in pages()}
# Run as modules or files of their own, by tests of their own.
ELSEWHERE = {
    "docs/writing.md": "tests/testing/test_guide.py",
    "docs/one_file.md": "tests/house/test_author_pages.py",
    "docs/scores.md": "tests/scores/test_scores.py",
}
INTEGRATIONS = sorted((ROOT / "regplug" / "integrations").glob("[a-z]*.py"))
PUBLIC = (*MODULES, *(f"regplug.integrations.{path.stem}" for path in INTEGRATIONS))
# The last ones are directives, which building the site checks.
CHECKED = ("python", "console", "yaml", "{eval-rst}", "{include}", "{toctree}")
FIRST = next(block for block in page("start.md").blocks if block.language == "python")


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_of_a_kind_that_is_checked(name: str) -> None:
    for block in PAGES[name].blocks:
        if block.language == "text":
            # What the code or the command above it prints, or the ranks' message.
            known = block.after in ("python", "console") or "the ranks differ" in block.text
            assert known, f"{name}, line {block.line}: nothing checks this block"
        elif name not in ELSEWHERE:
            assert block.language in CHECKED, f"{name}, line {block.line}"


# Torch's own, where inductor is imported.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
# Torch tells that a checkpoint is of one process.
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize(
    "name", [n for n, p in PAGES.items() if any(b.language == "python" for b in p.blocks)]
)
def test_code_runs_and_prints_what_stands_below(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ELSEWHERE:
        assert f'"{Path(name).name}"' in (ROOT / ELSEWHERE[name]).read_text(encoding="utf-8")
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    namespace: dict[str, object] = {"__name__": "page"}
    blocks = PAGES[name].blocks
    if "goes on from [the first example](start.md)" in PAGES[name].text:
        _printed(FIRST, "docs/start.md", namespace)
    for block, below in zip(blocks, [*blocks[1:], None], strict=True):
        if block.language != "python":
            continue
        printed = _printed(block, name, namespace)
        if below is not None and (below.language, below.after) == ("text", "python"):
            assert printed.strip() == below.text.strip(), f"{name}, line {below.line}"


def _printed(block: Block, name: str, namespace: dict[str, object]) -> str:
    # With its line number, so that a failure points into the page.
    code = compile("\n" * (block.line - 1) + block.text, str(ROOT / name), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


@pytest.mark.parametrize("name", PAGES)
def test_links_and_anchors_lead_somewhere(name: str) -> None:
    here = PAGES[name]
    for target in here.links:
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        there = (here.path.parent / path).resolve() if path else here.path
        assert there.exists(), f"{name}: {target}"
        if anchor and there.suffix == ".md":
            assert anchor in Page(there).anchors, f"{name}: {target}"


def test_every_page_is_in_the_site() -> None:
    trees = [page("index.md").text, page("plugins.md").text]
    listed = "\n".join([*trees, (DOCS / "conf.py").read_text(encoding="utf-8")])
    for path in DOCS.rglob("*.md"):
        name = path.relative_to(DOCS).with_suffix("").as_posix()
        known = name == "index" or re.search(rf"(^{name}$|\"{name}\.md\")", listed, re.MULTILINE)
        assert known, f"no table of contents lists {name}"


def test_every_public_name_is_in_the_reference() -> None:
    pages = [*(DOCS / "api").glob("*.md"), *(DOCS / "plugins").glob("*.md")]
    reference = "\n".join(path.read_text(encoding="utf-8") for path in pages)
    for module in PUBLIC:
        if f".. automodule:: {module}\n" in reference and module != "regplug":
            continue
        for name in importlib.import_module(module).__all__:
            found = getattr(importlib.import_module(module), name)
            full = found.__name__ if inspect.ismodule(found) else f"{module}.{name}"
            assert re.search(rf":: {re.escape(full)}(\(\))?$", reference, re.MULTILINE), full


def test_front_page_is_short() -> None:
    assert len(PAGES["README.md"].text.split()) <= 900


# --- launching ---------------------------------------------------------------------------------


def disagree(rank: int) -> str:
    model = DistributedDataParallel(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        regplug.attach(model, optimizer, [("l1(0.1)", "l1(0.2)")[rank]])
    except errors.RegplugError as error:
        return f"{type(error).__name__}: {error}"
    return "agreed"


def test_message_of_ranks_that_differ(pair: Pair) -> None:
    blocks = page("clusters.md").blocks
    (shown,) = [b.text for b in blocks if b.language == "text" and b.after == ""]
    assert pair.run(disagree) == [shown.strip()] * 2


CONFIGURATIONS = [b for b in page("clusters.md").blocks if b.language == "yaml"]


@pytest.mark.parametrize("block", CONFIGURATIONS, ids=lambda block: block.line)
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
