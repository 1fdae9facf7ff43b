"""The page on the house names every room, and no other; and the tests follow the rooms."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CORE = ROOT / "regplug"


def rooms() -> set[str]:
    folders = {f"{folder.parent.name}/" for folder in CORE.glob("*/__init__.py")}
    return folders | {file.name for file in CORE.glob("*.py") if file.stem[:2] != "__"}


def test_the_table_of_floors_names_every_room() -> None:
    table = PAGE.partition("| room |")[2].partition("\n\n")[0]
    named = {
        name
        for row in table.splitlines()[2:]
        for name in re.findall(r"`([^`]+)`", row[: row.index("|", 2)])
    }
    assert named == rooms()


def test_every_file_that_the_page_names_is_there() -> None:
    files = re.findall(r"`((?:[a-z_]+/)*[a-z_]+(?:\.py|/))`", PAGE)
    assert len(files) > 30
    elsewhere = ("plugins/", "tests/", "docs/")
    missing = [
        file
        for file in files
        if not ((ROOT if file.startswith((*elsewhere, "regplug/")) else CORE) / file).exists()
        and not (CORE / "backend" / file).exists()
    ]
    assert missing == []


# The tests

TESTS = ROOT / "tests"
LONGEST = 400


def test_the_paragraph_on_the_tests_names_every_folder_of_them() -> None:
    paragraph = PAGE.partition("## The tests")[2].partition("\n## ")[0]
    folders = {folder.name for folder in TESTS.iterdir() if any(folder.glob("*.py"))}
    assert set(re.findall(r"`(?:tests/)?([a-z]+)/`", paragraph)) == folders


def test_every_room_has_its_tests() -> None:
    without = {
        folder.parent.name
        for folder in CORE.glob("*/__init__.py")
        if not any((TESTS / folder.parent.name).glob("test_*.py"))
    }
    assert without == set()


def test_no_test_stands_outside_of_the_rooms() -> None:
    assert [path.name for path in TESTS.glob("test_*.py")] == []


def test_no_file_of_tests_is_long() -> None:
    """A long one holds several ideas: split it by them, and share what both need."""
    lengths = {
        str(path.relative_to(TESTS)): len(path.read_text(encoding="utf-8").splitlines())
        for path in TESTS.rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
