"""Has public regularizers sit the exam, and writes their scores into docs/scores.md.

``python -m tests.scores.run`` examines all of them, ``python -m tests.scores.run NAME`` those whose
key has NAME in it. Which there are: :func:`entries`.
"""

import importlib
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path

from regplug.testing import EXAM, Report, check_plugin
from tests.helpers import generated
from tests.scores.adapters import Entry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scores.md"
COMMAND = "make scores"
MODULES = {
    "of_keras": "keras",
    "of_torch": "torch",
    "of_proxtorch": "proxtorch",
    "of_pytorch_optimizer": "pytorch_optimizer",
    "retyped": "torch",
}
"""The adapters, and the distribution that each needs."""

HEAD = "| library | regularizer | adapter | checks passed / judged | what fails |\n"
RULE = "| --- | --- | --- | --- | --- |\n"
PROCESSES = 2


@dataclass(frozen=True)
class Score:
    """What the exam of one entry came to."""

    module: str
    entry: str
    passed: tuple[str, ...]
    failed: tuple[str, ...]
    not_judged: tuple[str, ...]
    skipped: tuple[str, ...]
    report: str
    seconds: float


def is_installed(distribution: str) -> bool:
    """Whether the adapters for it can be imported."""
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def entries(module: str) -> list[Entry]:
    """Return the entries of a module of adapters, which imports the library."""
    found: list[Entry] = importlib.import_module(f"tests.scores.{module}").ENTRIES
    return found


def scored(report: Report, module: str, entry: str) -> Score:
    """Return the score: of each check, whether it passed in all regimes in which it was judged."""
    by_check: dict[str, set[str]] = {}
    for result in report.results:
        by_check.setdefault(result.check, set()).add(result.outcome)
    kinds: dict[str, list[str]] = {k: [] for k in ("failed", "passed", "not judged", "skipped")}
    for check, outcomes in by_check.items():
        kinds[next(kind for kind in kinds if kind in outcomes)].append(check)
    failed, passed, not_judged, skipped = (tuple(found) for found in kinds.values())
    return Score(module, entry, passed, failed, not_judged, skipped, str(report), report.seconds)


def sit(module: str, number: int) -> Score:
    """Examine one entry: the whole exam."""
    entry = entries(module)[number]
    return scored(check_plugin(entry.make()), module, entry.key)


def row(score: Score, entry: Entry) -> str:
    """Return the line of the table."""
    where = "retyped" if entry.retyped else version(entry.library)
    link = f"[{score.module}](../tests/scores/{score.module}.py)"
    fails = ", ".join(f"`{check}`" for check in score.failed) or "–"
    if score.failed:
        fails = f"[{fails}](#{anchor(entry)})"
    if score.not_judged:
        fails += f" ({len(score.not_judged)} depend on it, and are not judged)"
    judged = len(score.passed) + len(score.failed)
    return (
        f"| {entry.library} {where} | `{entry.name}` | {link} | {len(score.passed)} / {judged} "
        f"| {fails} |\n"
    )


def anchor(entry: Entry) -> str:
    """Return the target of the heading under which the page shows why it fails."""
    return re.sub(r"[^\w\- ]", "", entry.key.lower()).replace(" ", "-")


def table(page: str) -> dict[str, str]:
    """Return the lines of the table, by the key of each entry."""
    found = {}
    for line in page.splitlines(keepends=True):
        if cells := re.match(r"\| (\S+) \S+ \| `([^`]+)` \|", line):
            found[f"{cells[1]} {cells[2]}"] = line
    return found


def main(only: str | None) -> int:
    """Examine what is chosen, print the reports, and write the lines of the table."""
    started = time.monotonic()
    all_of_them = [(m, n, entry) for m in MODULES for n, entry in enumerate(entries(m))]
    chosen = [c for c in all_of_them if only is None or only in c[2].key]
    lines = {} if only is None else table(generated.written(PAGE, COMMAND))
    # Spawned, since what torch and Keras start in this process does not live on in a copy.
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        awaited = {pool.submit(sit, m, n): entry for m, n, entry in chosen}
        for future in as_completed(awaited):
            score, entry = future.result(), awaited[future]
            lines[entry.key] = row(score, entry)
            print(said(score), flush=True)
    text = f"Exam {EXAM}, torch {version('torch')}, {len(lines)} regularizers.\n\n{HEAD}{RULE}"
    text += "".join(lines[e.key] for _, _, e in all_of_them if e.key in lines)
    generated.write(PAGE, COMMAND, text)
    print(f"{len(chosen)} exams in {time.monotonic() - started:.0f} s, written to {PAGE.name}")
    return 0


def said(score: Score) -> str:
    """Return what is printed of a score: what failed, each in a line, and how long it took."""
    failures = [line for line in score.report.splitlines() if re.match(r"[\w-]+ .* failed  ", line)]
    judged = len(score.passed) + len(score.failed)
    head = f"{score.entry}: {len(score.passed)} of {judged} in {score.seconds:.0f} s"
    return "\n    ".join([head, *failures])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else None))
