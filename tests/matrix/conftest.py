"""Prints the matrix: rows plugins, columns regimes, each cell its largest error."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.generated import write
from tests.helpers.pair import Pair

PAGE = Path(__file__).parents[2] / "docs" / "matrix.md"

outcome = pytest.StashKey[pytest.TestReport]()

errors: dict[tuple[str, str], float | str] = {}
"""The largest error of each cell that was run, or the letter of the reason why it cannot hold."""
failed: set[tuple[str, str]] = set()


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], float | str]]:
    before = set(errors)
    yield errors
    if (report := request.node.stash.get(outcome, None)) is not None and report.failed:
        failed.update(set(errors) - before)


@pytest.fixture(scope="session")
def workers(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The processes of the regimes of ranks."""
    from tests.matrix.tasks import DEVICE, RANKS

    if DEVICE == "cpu":
        yield request.getfixturevalue("pair")
        return
    ranks = Pair(RANKS, device=DEVICE)
    yield ranks
    ranks.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if report.when == "call":
        item.stash[outcome] = report
    return report


def pytest_configure() -> None:
    import torch

    from tests.matrix.tasks import DEVICE

    if DEVICE != "cpu" and not torch.cuda.is_available():
        raise pytest.UsageError(
            f"REGPLUG_DEVICE is {DEVICE!r}, but torch sees no GPU: is it a build for CUDA, and is "
            "REGPLUG_GPU=1 set, as `make matrix DEVICE=cuda` does?"
        )


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int) -> None:
    if not errors:
        return
    from tests.matrix.tasks import DEVICE

    terminalreporter.section("plugin × regime: the largest error against one process in float64")
    lines = list(_table())
    for line in lines:
        terminalreporter.write_line(line)
    # Only `make matrix` says so: a run of some cells, or of all tests, leaves the page alone.
    if os.environ.get("REGPLUG_PAGES") and DEVICE == "cpu" and not exitstatus:
        write(PAGE, "make matrix", "\n".join(lines))


def _table() -> Iterator[str]:
    from tests.matrix.cells import REASONS
    from tests.matrix.regimes import REGIMES
    from tests.matrix.tasks import DEVICE, RANKS

    rows = list(dict.fromkeys(row for row, _ in errors))
    columns = [name for name in REGIMES if any(column == name for _, column in errors)]
    yield ""
    yield "| plugin, delivery | " + " | ".join(columns) + " |"
    yield "| --- |" + " --- |" * len(columns)
    for row in rows:
        shown = [_shown((row, column)) for column in columns]
        yield f"| {row} | " + " | ".join(shown) + " |"
    yield ""
    cannot = [error for error in errors.values() if isinstance(error, str)]
    for letter in sorted(set(cannot)):
        yield f"({letter}) {REASONS[letter]}\n"
    held = len(errors) - len(cannot) - len(failed)
    yield f"{len(errors)} cells: {held} hold, {len(failed)} fail, {len(cannot)} cannot be"
    if DEVICE != "cpu":
        import torch

        yield f"trained on {torch.cuda.get_device_name()}, {RANKS} rank(s) where there are ranks"


def _shown(cell: tuple[str, str]) -> str:
    error = errors.get(cell)
    if error is None:
        return ""
    if cell in failed:
        return f"FAILS: {error}"
    if isinstance(error, str):
        return f"({error})"
    return f"{error:.0e}" if error else "0"
