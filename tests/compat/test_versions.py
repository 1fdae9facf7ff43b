"""What is promised, the table of environments, and the page that says what came of each."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import try_all
from environments import TABLE, Environment, environments
from versions import COLUMNS, HEADS, VERSIONS, Row, as_page, as_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OLDEST = next(e for e in environments() if e.name == "oldest")


def bounds(requirements: list[str]) -> dict[str, str]:
    """Return the lower bound of each requirement, which must be all that it says."""
    found = {}
    for requirement in requirements:
        match = re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement)
        assert match, f"{requirement}: a lower bound and nothing else"
        found[match[1]] = match[2]
    return found


def padded(version: str) -> tuple[int, ...]:
    parts = tuple(int(part) for part in version.partition("+")[0].split("."))
    return parts + (0,) * (3 - len(parts))


def test_no_more_is_promised_than_the_oldest_environment_shows() -> None:
    promised = bounds(PROJECT["dependencies"]) | bounds(PROJECT["optional-dependencies"]["tune"])
    assert {name: padded(v) for name, v in promised.items()} == {
        name: padded(v) for name, v in OLDEST.pins.items()
    }


def test_pythons_are_tried_from_the_oldest_that_is_promised() -> None:
    assert PROJECT["requires-python"] == ">=3.10"
    assert "3.10" in {e.python for e in environments()}
    named = re.findall(r":: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    # The page tells what Python the environments without one have.
    tried = {row[1].rpartition(".")[0] for row in cells()[2:]} | {e.python for e in environments()}
    assert set(named) <= tried


# --- the page and the table ------------------------------------------------------------------


def page() -> str:
    return (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")


def cells() -> list[list[str]]:
    lines = [line for line in page().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_has_a_row_for_each_environment() -> None:
    heads, rule, *rows = cells()
    assert heads == HEADS
    assert set(rule) == {"---"}
    assert [row[0] for row in rows] == [e.name for e in environments()]
    for environment in environments():
        assert f"- `{environment.name}`: {environment.why}; pip was asked for" in page()
        assert all(f"`{package}`" in page() for package in environment.packages)


def test_the_page_shows_the_versions_asked_for_and_no_failure() -> None:
    for environment, row in zip(environments(), cells()[2:], strict=True):
        found = dict(zip(HEADS, row, strict=True))
        assert len(row) == len(HEADS)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["tried on"])
        if found["Python"].startswith("not had"):
            continue
        assert found["Python"].startswith(environment.python)
        for package in set(VERSIONS) & set(environment.pins):
            assert found[package].partition("+")[0] == environment.pins[package]
        for head, _ in COLUMNS.values():
            assert re.fullmatch(r"passed|skipped \(\d+\)", found[head]), (environment.name, head)


def test_each_note_of_the_page_is_referred_to() -> None:
    referred = set(re.findall(r"\((\d+)\) +\|", page()))
    assert referred == set(re.findall(r"^(\d+)\. ", page(), re.MULTILINE))


# --- what a row says -------------------------------------------------------------------------


ONE = Environment("one", "", ("torch==2.6.0",), "a reason")
PASSED = {
    "python": "3.11.7",
    "versions": dict.fromkeys(VERSIONS, "2.6.0"),
    "outcomes": {kind: ["passed", ""] for kind in COLUMNS},
}


def test_a_failure_is_a_failure_and_a_skip_is_none() -> None:
    failed = {**PASSED, "outcomes": {**PASSED["outcomes"], "ddp": ["failed", "rank 1: no"]}}
    skipped = {**PASSED, "outcomes": {**PASSED["outcomes"], "fsdp2": ["skipped", "no streams"]}}
    rows = [
        Row(ONE, "2026-01-01", report=PASSED),
        Row(ONE, "2026-01-01", report=failed),
        Row(ONE, "2026-01-01", report=skipped),
        Row(ONE, "2026-01-01", missing="could not be downloaded: no route"),
        Row(ONE, "2026-01-01", broken="could not be installed: conflict"),
    ]
    assert [bool(row.failures) for row in rows] == [False, True, False, False, True]
    for told in (as_text(rows), as_page(rows)):
        for words in ("rank 1: no", "no streams", "no route", "conflict", "failed (1)"):
            assert words in told


# --- for real, without a network -------------------------------------------------------------


def written(folder: Path, *rows: Environment) -> Path:
    text = ""
    for row in rows:
        fields = dataclasses.asdict(row) | {"packages": list(row.packages)}
        text += "[[environment]]\n" + "".join(f"{k} = {v!r}\n" for k, v in fields.items())
    table = folder / "environments.toml"
    table.write_text(text)
    return table


def test_what_is_not_to_be_had_is_told_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    absent = Environment("absent", "", ("no-such-thing==1.0",), "of nobody")
    unborn = Environment("unborn", "3.99", (), "another Python")
    page = tmp_path / "page.md"
    code = try_all.main([], file=written(tmp_path, absent, unborn), work=tmp_path, page=page)
    told = capfd.readouterr().out
    assert code == 0, told
    assert "could not be downloaded: No matching distribution found for no-such-thing==1.0" in told
    assert "no python3.99 was found" in told
    assert page.read_text().count("not had") == 2
    assert not (tmp_path / "absent").exists()


def test_an_environment_that_can_not_be_made_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    broken = Environment("broken", "", ("no requirement",), "a slip")
    code = try_all.main(
        [], file=written(tmp_path, broken), work=tmp_path, page=tmp_path / "page.md"
    )
    assert code == 1
    assert "failed: broken: could not be installed" in capfd.readouterr().out


def test_an_unknown_name_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert try_all.main(["odest"], file=TABLE, work=tmp_path, page=tmp_path / "page.md") == 2
    assert "no environment is called odest" in capfd.readouterr().err
