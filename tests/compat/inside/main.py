"""Run all checks of this folder in the environment under test, and write what came of them.

``python main.py FILE [CHECK …]`` writes JSON: the versions, where regplug was imported from, for
each check its outcome (passed, failed or skipped) with a few words, and the deprecations seen.
"""

from __future__ import annotations

import collections
import importlib.metadata
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import loops
import tools

import regplug

NAMED = (
    "torch",
    "pluggy",
    "accelerate",
    "numpy",
    "scikit-learn",
    "joblib",
    "matplotlib",
    "tqdm",
)
DEPRECATIONS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)

Outcome = tuple[str, str]


def check_loops() -> dict[str, Outcome]:
    found = list(loops.results())
    wrong = [f"{name}, {loop}: {told}" for name, loop, told in found if told]
    plugins = len({name.partition(" ")[0] for name, _, _ in found})
    told = f"{plugins} plugins × {len(loops.LOOPS)} loops"
    return {"loops": ("failed", "; ".join(wrong)) if wrong else ("passed", told)}


def check_exam() -> dict[str, Outcome]:
    return _by_kind(tools.exam(), others="exam")


def check_ranks() -> dict[str, Outcome]:
    return _by_kind(tools.ranks(), others="ranks")


def _by_kind(results: Iterable[tuple[str, str, str]], others: str) -> dict[str, Outcome]:
    """Sort the answers of exams by what needs two ranks, and all else."""
    sorts: dict[str, list[tuple[str, str, str]]] = collections.defaultdict(list)
    for check, outcome, message in results:
        kind = next((k for k in ("fsdp2", "ddp") if k in check.split(", ")), others)
        sorts[kind].append((check, outcome, message))
    return {kind: _judged(answers) for kind, answers in sorts.items()}


def _judged(answers: list[tuple[str, str, str]]) -> Outcome:
    failed = [f"{check}: {told}" for check, outcome, told in answers if outcome == "failed"]
    if failed:
        return "failed", "; ".join(failed)
    passed = sum(outcome == "passed" for _, outcome, _ in answers)
    if passed:
        return "passed", f"{passed} answers"
    return "skipped", answers[0][2].partition(": ")[2]


def check_run() -> dict[str, Outcome]:
    warned = tools.command()
    ours = [line for line in warned.splitlines() if "regplug" in line and "Deprecat" in line]
    return {"run": ("failed", "; ".join(ours)) if ours else ("passed", "")}


def check_tune() -> dict[str, Outcome]:
    tools.strength()
    return {"tune": ("passed", "")}


CHECKS: dict[str, Callable[[], dict[str, Outcome]]] = {
    "loops": check_loops,
    "exam": check_exam,
    "ranks": check_ranks,
    "run": check_run,
    "tune": check_tune,
}


def merged(first: Outcome | None, second: Outcome) -> Outcome:
    """Return the worse of two outcomes, with what both say."""
    if first is None:
        return second
    worse = next(kind for kind in ("failed", "passed", "skipped") if kind in (first[0], second[0]))
    told = [message for kind, message in (first, second) if kind == worse and message]
    return worse, "; ".join(dict.fromkeys(told))


def main(file: str, *wanted: str) -> int:
    started = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for name in wanted or CHECKS:
            try:
                found = CHECKS[name]()
            except Exception as error:
                found = {name: ("failed", f"{type(error).__name__}: {error}")}
            for kind, outcome in found.items():
                outcomes[kind] = merged(outcomes.get(kind), outcome)
                print(f"  {kind}: {outcome[0]} {outcome[1][:300]}", flush=True)
    outcomes["warnings"] = _warned(seen)
    report: dict[str, Any] = {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in NAMED},
        "regplug": str(Path(regplug.__file__).resolve()),
        "outcomes": outcomes,
        "seconds": round(time.monotonic() - started),
    }
    Path(file).write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    return int(any(outcome == "failed" for outcome, _ in outcomes.values()))


def _warned(seen: Iterable[Any]) -> Outcome:
    """Judge the deprecations: what regplug's own lines are warned of fails."""
    told = [w for w in seen if issubclass(w.category, DEPRECATIONS)]
    ours = [w for w in told if {"regplug", "regplug_builtins"} & set(Path(w.filename).parts)]
    if ours:
        return "failed", "; ".join(f"{w.filename}:{w.lineno}: {w.message}" for w in ours)
    others = {f"{Path(w.filename).name}: {w.message}" for w in told}
    return "passed", f"{len(others)} of others" if others else ""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
