"""The example of weights that are sharded twice: the same table and weights as on one process."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.pair import Pair

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "accelerate_fsdp_tp.py"
ROW = re.compile(r"^(\S.*?) +(\d+\.\d) % +(\d+\.\d) % +(\d+\.\d+)   (.*)$", re.MULTILINE)


def told(rank: int, *arguments: str) -> str:
    """What the example prints in a process that stands already."""
    sys.path.insert(0, str(EXAMPLE.parent))
    try:
        example = importlib.import_module("accelerate_fsdp_tp")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            example.main(arguments)
        return printed.getvalue()
    finally:
        sys.path.pop(0)
        sys.modules.pop("accelerate_fsdp_tp", None)


def same_table(found: str, wanted: str) -> None:
    ours, alone = ROW.findall(found), ROW.findall(wanted)
    assert [row[0] for row in ours] == [row[0] for row in alone]
    assert len(ours) == 4
    for mine, theirs in zip(ours, alone, strict=True):
        assert list(map(float, mine[1:4])) == pytest.approx(list(map(float, theirs[1:4])), abs=0.2)
        assert "Shard" in mine[4]
        assert theirs[4] == "one tensor"


def same_weights(found: Path, wanted: Path) -> None:
    ours, alone = (torch.load(file, weights_only=True) for file in (found, wanted))
    assert ours.keys() == alone.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-5)


def test_four_processes_show_the_table_of_one(four: Pair, tmp_path: Path) -> None:
    quick = ("--epochs", "1", "--save")
    alone = told(0, *quick, str(tmp_path / "one.pt"))
    first, *others = four.run(told, *quick, str(tmp_path / "four.pt"))
    same_table(first, alone)
    assert others == [""] * 3
    same_weights(tmp_path / "four.pt", tmp_path / "one.pt")
    (_, _, zeros, _, _) = ROW.findall(alone)[2]
    assert float(zeros) > 10


@pytest.mark.slow
def test_it_runs_under_torchrun(tmp_path: Path) -> None:
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node", "4"]
    found = []
    for name, command in (("four", [*torchrun, "--standalone"]), ("one", [sys.executable])):
        done = subprocess.run(
            [*command, str(EXAMPLE), "--save", str(tmp_path / f"{name}.pt")],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    same_table(*found)
    same_weights(tmp_path / "four.pt", tmp_path / "one.pt")
    assert float(ROW.findall(found[1])[2][2]) > 40
