"""A run of several processes that is killed at any moment, started again, and ends the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed import resumable, resumable_on_a_mesh
from tests.distributed.killing import Run, resume
from tests.helpers.pair import Pair

DDP = Run(resumable, 2)
MESH = Run(resumable_on_a_mesh, 4)


def test_a_killed_run_ends_with_the_same_bits(pair: Pair, tmp_path: Path) -> None:
    resume(pair, tmp_path, 2, DDP)


@pytest.mark.soak
def test_a_run_killed_twenty_times_ends_with_the_same_bits(pair: Pair, tmp_path: Path) -> None:
    resume(pair, tmp_path, 20, DDP)


@pytest.mark.slow
def test_a_killed_run_on_a_mesh_ends_with_the_same_bits(four: Pair, tmp_path: Path) -> None:
    resume(four, tmp_path, 2, MESH)


@pytest.mark.soak
def test_a_run_on_a_mesh_killed_twenty_times_ends_with_the_same_bits(
    four: Pair, tmp_path: Path
) -> None:
    resume(four, tmp_path, 20, MESH)
