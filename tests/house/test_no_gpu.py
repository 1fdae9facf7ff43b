"""Tests run on the CPU whatever the machine has, and so does all that they start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from regplug.testing.processes import processes
from tests.helpers.pair import Pair

ROOT = Path(__file__).resolve().parents[2]
SEEN = "import os, torch; print(os.environ.get('CUDA_VISIBLE_DEVICES'), torch.cuda.device_count())"

INI = "[pytest]\naddopts = -p no:cacheprovider\n"
ASKS = """
import os
def test_asks():
    print("sees", os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("ACCELERATE_USE_CPU"))
"""


def visible(rank: int = 0) -> tuple[str | None, int]:
    return os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count()


def test_no_gpu_is_visible_to_tests_nor_to_the_ranks_that_they_start(pair: Pair) -> None:
    assert visible() == ("-1", 0)
    assert pair.run(visible) == [("-1", 0)] * 2
    assert processes().run(visible) == [("-1", 0)] * 2


def test_no_gpu_is_visible_to_the_commands_that_tests_run() -> None:
    done = subprocess.run([sys.executable, "-c", SEEN], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["-1", "0"]


def accelerated(rank: int) -> str:
    return Accelerator().device.type


def test_accelerate_chooses_the_cpu_unasked(pair: Pair) -> None:
    """On a Mac it would choose another device than CUDA's."""
    assert pair.run(accelerated) == ["cpu", "cpu"]


@pytest.mark.parametrize(
    ("wish", "seen"), [({}, "sees -1 true"), ({"REGPLUG_GPU": "1"}, "sees 0 None")]
)
def test_tests_of_gpus_see_theirs(wish: dict[str, str], seen: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "conftest.py").read_text(encoding="utf-8"))
    (tmp_path / "pytest.ini").write_text(INI)
    (tmp_path / "test_asks.py").write_text(ASKS)
    clean = {k: v for k, v in os.environ.items() if k not in ("REGPLUG_GPU", "ACCELERATE_USE_CPU")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-s", "-q", "test_asks.py"],
        cwd=tmp_path,
        env={**clean, "CUDA_VISIBLE_DEVICES": "0", **wish},
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen in done.stdout
