"""The gallery shows each example, and figures that it prints."""

import re

import pytest

from tests.house.pages import ROOT, page, rows
from tests.house.test_examples import EXAMPLES, run

GALLERY = page("gallery.md")


def figures(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"(?<![\w.(])\d+\.?\d*(?![\w.)])", text)]


def test_each_example_is_in_it() -> None:
    scripts = {p.name for p in EXAMPLES.glob("*.py") if "__main__" in p.read_text("utf-8")}
    scripts -= {"demo_picture.py", "demo_table.py"}  # parts of the demo
    shown = {command.split("/")[-1] for command in GALLERY.commands if command.startswith("python")}
    assert shown == scripts
    packages = {path.parent.name for path in EXAMPLES.glob("*/pyproject.toml")}
    assert packages == set(re.findall(r"\.\./examples/(\w+)/README\.md", GALLERY.text))
    assert (ROOT / "docs" / "index.md").read_text("utf-8").count("gallery.md") == 1


def test_each_part_of_it_has_its_picture() -> None:
    parts = GALLERY.text.split("\n## ")[1:]
    assert len(parts) >= 9
    assert [part.splitlines()[0] for part in parts if "\n![" not in part] == []
    drawn = {path.name for path in (ROOT / "docs" / "pictures").glob("example_*.png")}
    assert drawn == set(re.findall(r"\(pictures/(\w+\.png)\)", GALLERY.text))


def test_figures_of_the_textbook_are_what_it_prints(tmp_path) -> None:
    told = run(tmp_path, "regression.py")
    for name, *cells in rows(GALLERY.section("The textbook: L1 and L2 in the loss")):
        (line,) = re.findall(rf"^{re.escape(name)}  +(.*)$", told, re.MULTILINE)
        assert figures(line) == pytest.approx([float(cell) for cell in cells], abs=0.002)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "heading"),
    [
        ("images.py", "Images: fewer weights, more digits right"),
        ("accelerate_fsdp_tp.py", "One process or many"),
    ],
)
def test_figures_are_what_the_example_prints(tmp_path, script: str, heading: str) -> None:
    told = run(tmp_path, script)
    for name, *cells in rows(GALLERY.section(heading)):
        (line,) = re.findall(rf"^{re.escape(name)}  *(.*)$", told, re.MULTILINE)
        assert figures(line)[: len(figures(" ".join(cells)))] == pytest.approx(
            figures(" ".join(cells)), abs=1.0
        )
