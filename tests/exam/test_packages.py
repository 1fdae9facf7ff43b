"""Packages of their own: the one that `regplug new` writes, and the example of a third party."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from regplug.testing import CHECKS

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "third_party_plugin"


def run(*command, cwd, env=None):
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def test_new_package_installs_and_passes_its_tests_as_it_is(tmp_path, packages):
    made = run(sys.executable, "-m", "regplug", "new", "smoothness", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "regplug-smoothness"
    env = packages(folder)
    tested = run(sys.executable, "-m", "pytest", "-q", cwd=folder, env=env)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    # One test for each check, and two of its own.
    passed, skipped = 24, 1  # it has no proximal operator
    assert f"{passed + 2} passed, {skipped} skipped" in tested.stdout
    assert passed + skipped == len(CHECKS)

    listed = run(sys.executable, "-m", "regplug", "plugins", "--json", cwd=tmp_path, env=env)
    (entry,) = [e for e in json.loads(listed.stdout) if e["name"] == "smoothness"]
    assert entry["distribution"] == "regplug-smoothness"
    assert entry["separable"] is True
    assert entry["summary"] == "The smoothness penalty: λ·Σ log cosh(w)."

    again = run(sys.executable, "-m", "regplug", "new", "smoothness", cwd=tmp_path / "..", env=env)
    assert again.returncode == 1
    assert "is taken, by regplug-smoothness 0.1.0" in again.stderr


def test_new_package_is_in_good_style(tmp_path):
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    run(sys.executable, "-m", "regplug", "new", "total_variation", cwd=tmp_path)
    folder = tmp_path / "regplug-total-variation"
    checked = run(ruff, "check", "--isolated", "--extend-select=I,UP,B", ".", cwd=folder)
    assert checked.returncode == 0, checked.stdout
    formatted = run(ruff, "format", "--isolated", "--check", ".", cwd=folder)
    assert formatted.returncode == 0, formatted.stdout


def test_third_party_package_passes_the_exam(tmp_path, packages):
    copy = tmp_path / "package"
    shutil.copytree(EXAMPLE, copy)  # pip builds in the folder
    env = packages(copy)
    done = run(
        sys.executable, "-m", "regplug", "check", "log_sum(1e-3)", "--json", cwd=tmp_path, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(done.stdout)
    assert {result["check"] for result in results} == set(CHECKS)
    assert {result["outcome"] for result in results} == {"passed", "skipped"}
    skipped = {result["check"] for result in results if result["outcome"] == "skipped"}
    assert skipped == {"proximal", "separable"}  # it has no proximal operator
    tested = run(
        *(sys.executable, "-m", "pytest", "-q", "-k", "not TestLogSum"),
        *("tests",),
        cwd=copy,
        env=env,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
