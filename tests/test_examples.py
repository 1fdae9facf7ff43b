"""Every example runs to its end in its quick form, without a warning."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

# What each prints when it did its work.
TOLD = {
    "regression": ["loss (auto)", "MSE train", "l1/strength"],
    "images": ["plain", "regularized", "exact zeros"],
    "language_model": ["bits per character", "dropout"],
    "speakers": ["sparse test accuracy", "l1_recurrent/zeros"],
}


@pytest.mark.parametrize("name", TOLD)
def test_example_runs(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(EXAMPLES / f"{name}.py"), "--quick"],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert all(words in done.stdout for words in TOLD[name]), done.stdout


def test_every_example_is_run_by_a_test() -> None:
    tests = "\n".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert {name for name in scripts if name not in tests} == set()
