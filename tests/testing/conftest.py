"""What the tests of the exam share."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from regplug.testing import stop_processes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def _one_process_group() -> Iterator[None]:
    """All exams use the same two processes; they end with the tests."""
    yield
    stop_processes()


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """Return a function that installs packages for nobody else, and the environment to see them in.

    They are built by pip as any package is, but with what is installed here, without a network.
    """
    target = tmp_path_factory.mktemp("installed")

    def install(*folders: Path) -> dict[str, str]:
        options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
        where = ["--target", str(target), "--upgrade"]
        subprocess.run([*command, *options, *where, *map(str, folders)], check=True, cwd=target)
        return {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}

    return install
