"""What tests of all folders share."""

import gc
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from tests.helpers.pair import Pair
from tests.helpers.settings import settings

if not torch.cuda.is_available():  # before anything imports Triton
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Whole scripts, which tests run in processes of their own: an import would train, and write files.
collect_ignore_glob = ["command/scripts/*", "benchmarks/*", "compat/inside/*"]


@pytest.fixture(autouse=True, scope="module")
def nothing_of_other_files() -> None:
    """Have the garbage collector, and what asks it for objects, see those of this file alone.

    A collection takes seconds where it looks at all that thousands of tests have imported.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let Python end as it does: Triton's bindings complain of what is never freed."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Draw the same numbers in every run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def settings_left_as_they_were() -> Iterator[None]:
    """Fail a test that leaves them changed: others would fail for it, far away."""
    before = settings()
    yield
    assert settings() == before


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    """Two processes in one gloo group; ``pair.run(function, *args)`` calls it on both."""
    workers = Pair()
    yield workers
    workers.stop()


@pytest.fixture(scope="session")
def four() -> Iterator[Pair]:
    """Four processes, likewise, for meshes of two dimensions."""
    workers = Pair(4)
    yield workers
    workers.stop()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Have torch.compile forget what it compiled, and count anew."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that puts a distribution with its modules on ``sys.path``."""
    before = set(sys.modules)

    def install(
        name: str, entry_points: Sequence[tuple[str, str]], version: str = "1.0", **modules: str
    ) -> Path:
        site = tmp_path / f"{name}-site"
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8"
        )
        lines = "".join(f"{key} = {value}\n" for key, value in entry_points)
        (folder / "entry_points.txt").write_text(f"[regplug]\n{lines}", encoding="utf-8")
        for module, source in modules.items():
            (site / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        monkeypatch.syspath_prepend(str(site))
        return site

    yield install
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]
