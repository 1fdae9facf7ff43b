"""Try the wheel in every environment of the table: what ``make compat`` runs.

``python try_all.py [NAME …]`` tries those named, all without a name, one after the other; each
takes minutes and gigabytes, and is removed when it has been tried (unless COMPAT_KEEP is set). It
ends with 1 if anything failed; what can't be downloaded here is told, and is no failure.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from environments import (
    MINUTES,
    TABLE,
    BrokenError,
    Environment,
    NotHadError,
    build,
    environments,
    make,
)
from versions import Row, as_page, as_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def attempt(environment: Environment, wheel: Path, work: Path) -> Row:
    """Make one environment, run the checks in it, and remove it."""
    today = datetime.date.today().isoformat()
    folder = (work / environment.name).resolve()
    print(f"\n{environment.name}: {environment.why}", flush=True)
    try:
        python = make(environment, wheel, folder)
        return _tried(environment, today, python, folder)
    except NotHadError as why:
        print(f"  {why}", flush=True)
        return Row(environment, today, missing=str(why))
    except BrokenError as why:
        print(f"  {why}", flush=True)
        return Row(environment, today, broken=str(why))
    finally:
        if "COMPAT_KEEP" not in os.environ:
            shutil.rmtree(folder, ignore_errors=True)


def _tried(environment: Environment, today: str, python: Path, folder: Path) -> Row:
    answer = folder / "report.json"
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        subprocess.run(
            [str(python), str(HERE / "inside" / "main.py"), str(answer)],
            cwd=folder,  # not the checkout, whose regplug would be imported
            env={**clean, "CUDA_VISIBLE_DEVICES": "-1", "MPLBACKEND": "Agg"},
            timeout=60 * MINUTES,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BrokenError(f"the checks took more than {MINUTES:g} minutes") from error
    if not answer.exists():
        raise BrokenError("the checks ended without an answer")
    report = json.loads(answer.read_text(encoding="utf-8"))
    if not Path(report["regplug"]).is_relative_to(folder):
        raise BrokenError(f"it was not the wheel that was tried, but {report['regplug']}")
    wrong = {
        package: report["versions"][package]
        for package, version in environment.pins.items()
        if (report["versions"][package] or "").partition("+")[0] != version
    }
    if wrong:
        raise BrokenError(f"pip installed other versions than it was asked for: {wrong}")
    return Row(environment, today, report=report)


def main(names: list[str], *, file: Path = TABLE, work: Path, page: Path) -> int:
    """Try the environments and write the page, if there is an answer for each of the table's."""
    table = environments(file)
    if unknown := set(names) - {e.name for e in table}:
        print(f"no environment is called {', '.join(sorted(unknown))}; see {file}", file=sys.stderr)
        return 2
    answers = work / "answers"
    answers.mkdir(parents=True, exist_ok=True)
    wheel = build(ROOT, work / "wheel")
    rows = []
    for environment in table:
        if names and environment.name not in names:
            continue
        rows.append(attempt(environment, wheel, work))
        kept = dataclasses.asdict(rows[-1])
        (answers / f"{environment.name}.json").write_text(json.dumps(kept), encoding="utf-8")
    print(f"\n{as_text(rows)}")
    known = [row for environment in table if (row := _answer(environment, answers))]
    if len(known) == len(table):
        page.write_text(as_page(known), encoding="utf-8")
        print(f"\nwrote {page}")
    failures = [f"{row.environment.name}: {told}" for row in rows for told in row.failures]
    print("\n".join(f"failed: {told}" for told in failures), end="\n" if failures else "")
    return int(bool(failures))


def _answer(environment: Environment, answers: Path) -> Row | None:
    """Return the last answer of this or an earlier run, if the table still asks the same."""
    file = answers / f"{environment.name}.json"
    if not file.exists():
        return None
    kept = json.loads(file.read_text(encoding="utf-8"))
    asked = kept.pop("environment")
    asked["packages"] = tuple(asked["packages"])
    same = (asked["python"], asked["packages"]) == (environment.python, environment.packages)
    return Row(environment, **kept) if same else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], work=ROOT / ".compat", page=ROOT / "docs" / "versions.md"))
