"""The page on the house names every room, and no other."""

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
