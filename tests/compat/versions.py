"""What came of trying each environment, as a table to read and as a page of the docs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from environments import Environment

from regplug.table import table

VERSIONS = ("torch", "pluggy", "accelerate", "numpy", "scikit-learn")
# What is tried, by the key of its outcome: the head of its column, and what it is.
COLUMNS = {
    "loops": ("loops", "every built-in plugin attaches, acts, counts and detaches in seven loops"),
    "exam": ("exam", "the exam of `l1`, `weight_decay` and `dropout`"),
    "ddp": ("DDP", "every plugin on two ranks of `DistributedDataParallel`"),
    "fsdp2": ("FSDP2", "every plugin on two ranks of `fully_shard`"),
    "run": ("`run`", "`regplug run` on a script"),
    "tune": (
        "`StrengthCV`",
        "strengths chosen by cross-validation, against scikit-learn's `Lasso`",
    ),
    "warnings": (
        "no deprecations",
        "none is told of a line of regplug in the loops, the command and the search",
    ),
}
HEADS = ["environment", "Python", *VERSIONS, *(head for head, _ in COLUMNS.values()), "tried on"]

PAGE = """# Versions

What `pyproject.toml` promises was tried, where there was such a Python: `make compat` makes each of
these environments with pip, from the table in
[`tests/compat/environments.toml`](../tests/compat/environments.toml), installs the wheel there and
runs the same checks in all of them, on a CPU. It writes this page. `make test`
tries `oldest-hooks` each time, beside the torch that is installed.

{table}

{columns}

{environments}

{notes}
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """What came of one environment.

    Attributes:
        environment: which one.
        date: when it was tried.
        missing: why it was not tried, empty if it was.
        broken: why it could not be made or its checks gave no answer; that is a failure.
        report: what its checks wrote.
    """

    environment: Environment
    date: str
    missing: str = ""
    broken: str = ""
    report: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        """What failed, in words."""
        if self.broken:
            return [self.broken]
        outcomes = self.report.get("outcomes", {})
        return [f"{kind}: {told}" for kind, (how, told) in outcomes.items() if how == "failed"]


def _cells(row: Row, notes: list[str]) -> list[str]:
    """Return the row as words; what is to be said about it is added to ``notes``."""

    def noted(word: str, told: str) -> str:
        if told not in notes:
            notes.append(told)
        return f"{word} ({notes.index(told) + 1})"

    name, width = row.environment.name, len(HEADS) - 2
    if told := row.missing or row.broken:
        word = noted("not had" if row.missing else "failed", told)
        return [name, word, *["–"] * (width - 1), row.date]
    versions = [row.report["versions"][package] or "–" for package in VERSIONS]
    outcomes = []
    for kind in COLUMNS:
        how, said = row.report["outcomes"].get(kind, ("–", ""))
        outcomes.append(noted(how, _short(said)) if how in ("failed", "skipped") else how)
    return [name, row.report["python"], *versions, *outcomes, row.date]


def _short(told: str, most: int = 400) -> str:
    line = " ".join(told.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def as_text(rows: Sequence[Row]) -> str:
    """Return the table for a terminal, with its notes."""
    notes: list[str] = []
    cells = [_cells(row, notes) for row in rows]
    told = [f"({number}) {note}" for number, note in enumerate(notes, 1)]
    return "\n".join([table([head.strip("`") for head in HEADS], cells), *told])


def as_page(rows: Sequence[Row]) -> str:
    """Return the page of the docs."""
    notes: list[str] = []
    lines = [HEADS, ["---"] * len(HEADS), *(_cells(row, notes) for row in rows)]
    return (
        PAGE.format(
            table="\n".join(f"| {' | '.join(cells)} |" for cells in lines),
            columns="\n".join(f"- {head}: {told}" for head, told in COLUMNS.values()),
            environments="\n".join(f"- {_told(row.environment)}" for row in rows),
            notes="\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1)),
        ).rstrip()
        + "\n"
    )


def _told(environment: Environment) -> str:
    asked = ", ".join(f"`{package}`" for package in environment.packages) or "nothing in particular"
    return f"`{environment.name}`: {environment.why}; pip was asked for {asked}"
