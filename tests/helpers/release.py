"""Builds what would be released, checks it, installs it, and tries it: ``make release-check``.

Nothing is taken from the checkout but what the archives hold: each is installed into an
environment of its own, and run in an empty folder.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "release"
DIST = BUILD / "dist"

TRY = """
import importlib.metadata, regplug, torch
assert regplug.__version__ == importlib.metadata.version("regplug")
model = torch.nn.Linear(3, 2)
optimizer = torch.optim.Adam(model.parameters())
with regplug.attach(model, optimizer, ["l1(1e-3)", "weight_decay(0.1)"]) as session:
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert session.steps == 1
print("attached and stepped", regplug.__version__, "from", regplug.__file__)
"""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command, tell it, and return what it printed."""
    print("$", *command, flush=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        command, cwd=cwd, env=environment, check=False, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nfailed with status {done.returncode}")
    return done.stdout


def try_one(archive: Path) -> None:
    """Install ``archive`` into a new environment, and use it."""
    folder = BUILD / ("wheel" if archive.suffix == ".whl" else "source")
    venv.create(folder, with_pip=True, clear=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    constraints = ROOT / "constraints.txt"
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--constraint", constraints, archive)
    run(*pip, "check")
    empty = folder / "empty"
    empty.mkdir()
    (empty / "attach.py").write_text(TRY, encoding="utf-8")
    print(run(python, "attach.py", cwd=empty).strip())
    assert "weight_decay" in run(python, "-m", "regplug", "plugins", cwd=empty)
    report = json.loads(run(python, "-m", "regplug", "check", "l1(1e-3)", "--json", cwd=empty))
    results = report["results"] if isinstance(report, dict) else report
    outcomes = [result["outcome"] for result in results]
    assert "passed" in outcomes
    assert "failed" not in outcomes
    print(f"{archive.name}: the exam of l1 passed, {outcomes.count('passed')} cases")


def main() -> None:
    """Build, check, install, try."""
    shutil.rmtree(BUILD, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST)
    archives = sorted(DIST.iterdir())
    print(run(sys.executable, "-m", "twine", "check", "--strict", *archives).strip())
    for archive in archives:
        try_one(archive)
    for archive in archives:
        print(f"{hashlib.sha256(archive.read_bytes()).hexdigest()}  {archive}")


if __name__ == "__main__":
    main()
