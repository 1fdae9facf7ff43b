"""`regplug run` under launchers."""

import os
import subprocess
import sys

import pytest
import torch

from tests.command.forked import command
from tests.command.test_scripts import SCRIPTS, load


def launched(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "regplug")


@pytest.mark.parametrize(
    ("script", "plugin", "more"),
    [
        ("ddp.py", "elastic_net(1e-2, 1e-2, delivery='proximal')", []),
        ("sharded.py", "l1(1e-2, delivery='proximal')", ["keep"]),
    ],
)
def test_two_processes_give_the_weights_of_one(script, plugin, more, tmp_path):
    script = SCRIPTS / script
    alone = command("run", "-p", plugin, script, tmp_path / "one.pt", cwd=tmp_path)
    assert alone.code == 0, alone.err
    report = ("--report", tmp_path / "report")
    two = launched(
        *TORCHRUN, "run", "-p", plugin, *report, script, tmp_path / "two.pt", *more, cwd=tmp_path
    )
    assert two.returncode == 0, two.stderr
    for one, other in zip(load(tmp_path / "one.pt"), load(tmp_path / "two.pt"), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    # One rank tells, and it tells what one process would: value and zeros of the whole model.
    ours = [line for line in alone.err.splitlines() if "real steps" in line or "  proximal" in line]
    assert len(ours) == 2
    told = [line for line in two.stderr.splitlines() if line.startswith("regplug run: ")]
    assert [line for line in told if "real steps" in line or "  proximal" in line] == ours
    assert sum(path.suffix == ".json" for path in (tmp_path / "report").iterdir()) == 1


def test_accelerate_launch(tmp_path):
    script = SCRIPTS / "accelerated.py"
    alone = command("run", "-p", "l1(1e-2)", script, tmp_path / "one.pt", cwd=tmp_path)
    assert alone.code == 0, alone.err
    both = launched(
        *("accelerate.commands.launch", "--cpu", "--num_processes", 1, "--num_machines", 1),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "regplug", "run"),
        *("-p", "l1(1e-2)", script, tmp_path / "two.pt"),
        cwd=tmp_path,
    )
    assert both.returncode == 0, both.stderr
    assert "6 real steps" in both.stderr
    assert all(map(torch.equal, load(tmp_path / "one.pt"), load(tmp_path / "two.pt")))
