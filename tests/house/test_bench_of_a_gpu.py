"""The benchmark of a GPU is tried where there is none, so that it is known to work up to there."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_its_tables_are_complete() -> None:
    command = [sys.executable, "tests/benchmarks/gpu.py", "--device", "cpu", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    named = {line.split("|")[1].strip() for line in rows}
    assert {"l1, at the step", "l1, proximal, Adam", "l1, in the loss", "max_norm"} <= named
    assert {"bare", "attached, no plugin", "l1 proximal", "l2 handed over, Adam"} <= named
    assert not any("nan" in line for line in rows)
