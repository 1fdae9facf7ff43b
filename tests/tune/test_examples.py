"""The examples that choose strengths, each run in its quick form."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, *arguments):
    """Run an example in which a warning is an error; return what it prints."""
    found = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_choose_strength(tmp_path):
    told = run("choose_strength.py", "--quick", "--out", tmp_path)
    pictures = {"diabetes_scores", "diabetes_path", "digits_scores", "textbook_scores"}
    assert {file.stem for file in tmp_path.glob("*.png")} == pictures
    # Three ways, one answer.
    best = re.findall(r"best (l1=\S+, l2=\S+)", told)
    assert len(best) == 3
    assert len(set(best)) == 1


@pytest.mark.frameworks
def test_choose_with_optuna():
    told = run("choose_with_optuna.py", "--trials", 3)
    assert re.search(r"best of 3 trials: R² \S+ with l1\(\S+ delivery='proximal'\)", told)


@pytest.mark.frameworks
def test_choose_with_skorch():
    told = run("choose_with_skorch.py", "--epochs", 3)
    means = re.findall(r"l1\((\S+)\) l2\((\S+)\)  (0\.\d+)", told)
    assert len(means) == 6
    assert len({mean for _, _, mean in means}) > 1
    assert "weights left" in told
