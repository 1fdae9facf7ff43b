"""The example under every launcher: `python`, `torchrun` and the real `accelerate launch`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
EXAMPLE = str(ROOT / "examples" / "accelerate_ddp.py")
TORCHRUN = [str(BIN / "torchrun"), "--nproc_per_node", "2", "--standalone"]

Weights = dict[str, torch.Tensor]


def launch(command: list[str], **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MASTER_"))}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**clean, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[str, Weights]]:
    def run(*launcher: str, **environment: str) -> tuple[str, Weights]:
        file = tmp_path_factory.mktemp("weights") / "weights.pt"
        told = launch([*launcher, EXAMPLE, "--epochs", "4", "--save", str(file)], **environment)
        return told, torch.load(file, weights_only=True)

    return run


@pytest.fixture(scope="module")
def alone(run: Callable[..., tuple[str, Weights]]) -> Weights:
    told, weights = run(sys.executable)
    assert "1 processes" in told
    assert "l1/zeros" in told
    assert "32 steps" in told
    return weights


def close(found: Weights, wanted: Weights) -> None:
    assert set(found) == set(wanted)
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6)


def test_torchrun_gives_the_weights_of_one_process(
    run: Callable[..., tuple[str, Weights]], alone: Weights
) -> None:
    told, weights = run(*TORCHRUN)
    assert "MULTI_CPU, 2 processes" in told
    assert "32 steps" in told
    close(weights, alone)


@pytest.mark.skipif(
    shutil.which("mpirun") is None,
    reason="accelerate launch starts two CPU processes over MPI only, and there is no mpirun "
    "(Debian: apt-get install openmpi-bin)",
)
def test_accelerate_launch_gives_the_weights_of_one_process(
    run: Callable[..., tuple[str, Weights]], alone: Weights, tmp_path: Path
) -> None:
    """Without an MPI hostfile it would start a single process, and say nothing."""
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=2\n")
    told, weights = run(
        *(str(BIN / "accelerate"), "launch", "--cpu", "--num_processes", "2"),
        *("--num_machines", "1", "--machine_rank", "0", "--main_process_ip", "127.0.0.1"),
        *("--main_process_port", str(free_port()), "--mpirun_hostfile", str(hosts)),
        OMPI_ALLOW_RUN_AS_ROOT="1",
        OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
        PATH=f"{BIN}:{os.environ['PATH']}",  # mpirun starts the `python` that it finds
    )
    assert "MULTI_CPU, 2 processes" in told
    close(weights, alone)


def free_port() -> int:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


FAILING = """
import torch, torch.distributed as dist, regplug
from torch.nn.parallel import DistributedDataParallel

class BadDay(regplug.Plugin):
    @regplug.hookimpl
    def on_gradients(self, session):
        if dist.get_rank() == 1 and session.steps == 2:
            raise ValueError("no more")

dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(2, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
session = regplug.attach(model, optimizer, [BadDay()])
while True:
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
"""


def test_a_plugin_that_fails_on_one_rank_ends_the_run_under_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(FAILING)
    with pytest.raises(AssertionError) as raised:
        launch([*TORCHRUN, str(script)])
    told = str(raised.value)
    assert "PluginError: bad_day" in told
    assert "failed in on_gradients at step 2: ValueError: no more" in told
