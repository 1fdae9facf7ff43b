"""Packages of their own: the one that `regplug new` writes, and the example of a third party."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
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
    # No proximal operator, no draws, nothing of its own to stop half-way, no constraint.
    passed, skipped = 56, 5
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


def test_new_package_is_tested_as_it_is_edited(tmp_path):
    """The commands that are printed, in an environment that has no more than what they install."""
    made = run(sys.executable, "-m", "regplug", "new", "smoothness", cwd=tmp_path)
    *_, install, go = [shlex.split(line) for line in made.stdout.splitlines()]
    assert install[:2] == ["pip", "install"]
    assert go == ["cd", "./regplug-smoothness", "&&", "pytest"]
    python = environment(tmp_path / "venv")
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python),
        *(*install[1:], *offline),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    extras = run(
        *(python, "-c", "import importlib.metadata as m; print(m.requires('regplug-smoothness'))"),
        cwd=tmp_path,
    )
    (extra,) = re.findall(r"\[(\w+)\]", install[-1])
    assert re.search(rf"\bpytest\b[^,]*extra == '{extra}'", extras.stdout), extras.stdout

    folder = tmp_path / "regplug-smoothness"
    # As the command `pytest` runs: the working directory is not on sys.path.
    pytest_ = (python, Path(pytest.__file__).with_name("__main__.py"), "-q", "-k", "formula")
    tested = run(*pytest_, cwd=folder)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    module = folder / "regplug_smoothness.py"
    module.write_text(module.read_text().replace("- math.log(2)", "+ math.log(2)"))
    tested = run(*pytest_, cwd=folder)
    assert tested.returncode == 1, tested.stdout + tested.stderr
    assert "1 failed" in tested.stdout


def environment(folder):
    """Make a virtual environment that sees what is installed here; return its interpreter."""
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", where, cwd=folder).stdout.strip())
    # addsitedir, unlike a line with a path, reads the .pth files of editable installs too.
    line = "; ".join(["import site", f"site.addsitedir({sysconfig.get_path('purelib')!r})"])
    (site / "beside.pth").write_text(f"{line}\n")
    return python


@pytest.mark.parametrize(
    "text",
    [
        (ROOT / "docs" / "writing.md").read_text("utf-8"),
        (ROOT / "regplug" / "command" / "templates" / "README.md.txt").read_text("utf-8"),
        (ROOT / "regplug" / "command" / "templates" / "ci.yml.txt").read_text("utf-8"),
        (EXAMPLE / "README.md").read_text("utf-8"),
    ],
    ids=["guide", "new README", "new CI", "example"],
)
def test_wherever_a_package_is_tested_it_is_installed_to_be_edited(text):
    tested = [
        block
        for block in re.findall(r"```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE) or [text]
        if re.search(r"\bpytest\b", block)
    ]
    assert tested
    for block in tested:
        (install,) = re.findall(r"pip install (?!torch)(.*)", block)
        assert re.fullmatch(r"--editable '[\w./-]+\[test\]'", install), install


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


@pytest.mark.slow
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
    passed = {result["check"] for result in results if result["outcome"] == "passed"}
    skipped = set(CHECKS) - passed
    # It has no proximal operator, draws nothing, attaches as every penalty, and is no constraint.
    none = {"proximal", "reproducible", "fresh-draws", "stopped-attach", "projection"}
    assert skipped == none
    tested = run(
        *(sys.executable, "-m", "pytest", "-q", "-k", "not TestLogSum"),
        *("tests",),
        cwd=copy,
        env=env,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
