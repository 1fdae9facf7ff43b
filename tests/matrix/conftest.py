"""Prints the matrix: rows plugins, columns regimes, each cell its largest error."""

from typing import Any

import pytest

errors: dict[tuple[str, str], float | str] = {}
"""The largest error of each cell that was run, or the letter of the reason why it cannot hold."""


@pytest.fixture(scope="session")
def record() -> dict[tuple[str, str], float | str]:
    return errors


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not errors:
        return
    from cells import REASONS
    from regimes import REGIMES

    rows = list(dict.fromkeys(row for row, _ in errors))
    columns = [name for name in REGIMES if any(column == name for _, column in errors)]
    write = terminalreporter.write_line
    terminalreporter.section("plugin × regime: the largest error against one process in float64")
    write("")
    write("| plugin, delivery | " + " | ".join(columns) + " |")
    write("| --- |" + " --- |" * len(columns))
    for row in rows:
        shown = [_shown(errors.get((row, column))) for column in columns]
        write(f"| {row} | " + " | ".join(shown) + " |")
    write("")
    held = [error for error in errors.values() if not isinstance(error, str)]
    refused = sorted({error for error in errors.values() if isinstance(error, str)})
    for letter in refused:
        write(f"({letter}) {REASONS[letter]}")
    write(f"{len(errors)} cells: {len(held)} hold, {len(errors) - len(held)} are refused")


def _shown(error: float | str | None) -> str:
    if error is None:
        return ""
    if isinstance(error, str):
        return f"({error})"
    return f"{error:.0e}" if error else "0"
