"""The table of environments, and how one of them comes into being.

``python environments.py NAME`` prints what an environment asks pip for, but for torch.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
TABLE = HERE / "environments.toml"
MINUTES = float(os.environ.get("COMPAT_MINUTES", "30"))
"""The most that one environment may take to be downloaded, and to be tried."""

# What pip says where a registry is not reached, or has no such version (for this Python).
ABSENT = re.compile(
    r"No matching distribution|Could not find a version|Could not fetch|Connection|timed? ?out"
    r"|Max retries|HTTP error|NewConnectionError|No space left|ProtocolError|IncompleteRead",
    re.IGNORECASE,
)


class NotHadError(Exception):
    """A Python or a version can't be had here; the message says which and why."""


class BrokenError(Exception):
    """An environment is there to be had, but can't be made; the message says why."""


@dataclasses.dataclass(frozen=True)
class Environment:
    """One row of the table; see the head of the table's file."""

    name: str
    python: str
    packages: tuple[str, ...]
    why: str

    @property
    def pins(self) -> dict[str, str]:
        """The exact versions, by package."""
        return dict(package.split("==") for package in self.packages)


def environments(file: Path = TABLE) -> list[Environment]:
    """Return the rows of the table."""
    rows = tomllib.loads(file.read_text(encoding="utf-8"))["environment"]
    return [Environment(**{**row, "packages": tuple(row["packages"])}) for row in rows]


def find_python(version: str) -> str:
    """Return an interpreter of ``version`` ("3.12"), this one for "".

    Raises:
        NotHadError: there is none.
    """
    if not version:
        return sys.executable
    named = shutil.which(f"python{version}")
    # pyenv has a command for each version, which runs only if pyenv is told to use that version.
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [named] if named else []
    found += sorted(map(str, versions.glob(f"{version}.*/bin/python")), reverse=True)
    for path in found:
        told = subprocess.run(
            [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        if told.stdout.strip() == version:
            return path
    raise NotHadError(f"no python{version} was found")


def make(environment: Environment, wheel: Path, folder: Path) -> Path:
    """Make the environment in ``folder`` and return its interpreter.

    Raises:
        NotHadError: a version could not be downloaded, or not in time.
        BrokenError: pip has other reasons not to install it.
    """
    python = find_python(environment.python)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    inside = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    # Each is used once: a cache would keep gigabytes.
    pip = [str(inside), "-m", "pip", "--disable-pip-version-check", "install", "--no-cache-dir"]
    wanted = [*environment.packages, f"regplug[tune] @ {wheel.resolve().as_uri()}"]
    with tempfile.TemporaryDirectory() as scratch:
        # No constraint of this machine: what the registry serves is the newest.
        none = Path(scratch) / "constraints.txt"
        none.touch()
        try:
            done = subprocess.run(
                [*pip, *wanted],
                env={**os.environ, "PIP_CONSTRAINT": str(none)},
                stderr=subprocess.PIPE,
                text=True,
                timeout=60 * MINUTES,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise NotHadError(f"could not be downloaded within {MINUTES:g} minutes") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        told = " ".join((lines[-1] if lines else done.stderr).removeprefix("ERROR: ").split())
        if ABSENT.search(done.stderr) and "ResolutionImpossible" not in done.stderr:
            raise NotHadError(f"could not be downloaded: {told}")
        raise BrokenError(f"could not be installed: {told}")
    return inside


def build(root: Path, into: Path) -> Path:
    """Build the wheel of the checkout and return it."""
    shutil.rmtree(into, ignore_errors=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(into)]
    subprocess.run([*command, str(root)], check=True, stdout=subprocess.DEVNULL)
    (wheel,) = into.glob("*.whl")
    return wheel


if __name__ == "__main__":
    (row,) = (e for e in environments() if e.name == sys.argv[1])
    print(*(package for package in row.packages if not package.startswith("torch==")))
