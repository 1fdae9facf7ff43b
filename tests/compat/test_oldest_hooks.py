"""The oldest pluggy and accelerate, beside the torch of this environment: as `make compat` does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from environments import environments

HERE = Path(__file__).resolve().parent
OLDEST = Path(sys.prefix) / "oldest"  # make puts them there
PINS = next(e for e in environments() if e.name == "oldest-hooks").pins

pytestmark = pytest.mark.skipif(
    not OLDEST.is_dir(), reason=f"there is no {OLDEST}; `make setup` makes it"
)


@pytest.mark.parametrize("checks", [["loops", "run", "tune"], ["exam"]], ids=" ".join)
def test_all_holds_with_the_oldest_pluggy_and_accelerate(checks: list[str], tmp_path: Path) -> None:
    """Every plugin in every loop; the exam with DDP and FSDP2; the command; a search."""
    answer = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, str(HERE / "inside" / "main.py"), str(answer), *checks],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(OLDEST), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(answer.read_text(encoding="utf-8"))
    for package in ("pluggy", "accelerate"):
        assert report["versions"][package] == PINS[package]
    outcomes = {kind: how for kind, (how, _) in report["outcomes"].items()}
    assert set(outcomes.values()) == {"passed"}, report["outcomes"]
    assert {*checks} | {"warnings"} <= set(outcomes)
    if "loops" in checks:
        assert report["outcomes"]["loops"][1] == "22 plugins × 7 loops"
