"""`regplug doctor` under launchers, compiled, and around other people's trainers."""

import json

import pytest

from tests.command.forked import command, plain
from tests.command.test_run_launched import TORCHRUN, launched
from tests.command.test_scripts import SCRIPTS
from tests.command.writing import write

RANKS = """
import sys, torch, torch.distributed as dist
from torch.nn import functional as F
kind = sys.argv[1]
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
net = model
if kind in ("ddp", "times"):
    net = torch.nn.parallel.DistributedDataParallel(model)
if kind.startswith("fsdp"):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model
        def forward(self, x, y):
            weights = [p for p in self.body.parameters() if p.ndim > 1]
            return F.cross_entropy(self.body(x), y) + 1e-3 * sum(p.pow(2).sum() for p in weights)
    net = fully_shard(Loss(), mesh=init_device_mesh("cpu", (size,)))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
torch.manual_seed(rank)
for _ in range(4):
    optimizer.zero_grad()
    x, y = torch.randn(32, 6), torch.randint(0, 3, (32,))
    if kind.startswith("fsdp"):
        loss = net(x, y)
    else:
        loss = F.cross_entropy(net(x), y)
        loss = loss + 1e-3 * sum(p.pow(2).sum() for p in model.parameters() if p.ndim > 1)
    if kind == "times":
        loss = loss * size
    loss.backward()
    if kind in ("sum", "mean"):
        for p in model.parameters():
            dist.all_reduce(p.grad)
            if kind == "mean":
                p.grad /= size
    optimizer.step()
dist.destroy_process_group()
"""

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "strength", "scaled"),
    [
        ("times", 2e-3, True),
        pytest.param("ddp", 1e-3, False, marks=SLOW),
        pytest.param("sum", 2e-3, True, marks=SLOW),
        pytest.param("mean", 1e-3, False, marks=SLOW),
        pytest.param("fsdp", 1e-3, False, marks=SLOW),
    ],
)
def test_two_ranks(kind, strength, scaled, tmp_path):
    script = write(tmp_path, RANKS)
    ended = launched(*TORCHRUN, "doctor", "--json", "out.json", script, kind, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("4 real steps") == 1
    (run,) = json.loads((tmp_path / "out.json").read_text("utf-8"))["runs"]
    (penalty,) = [p for group in run["groups"] for p in group["penalties"]]
    assert penalty == {"kind": "l2", "strength": pytest.approx(strength, rel=1e-5)}
    found = {finding["code"] for finding in run["findings"]}
    assert found == ({"scaled-by-world-size"} if scaled else set())
    assert run["unseen"] == []


COMPILED = """
import sys, torch
from torch.nn import functional as F
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
whole, stepped = sys.argv[1] == "whole", sys.argv[1] == "step"
net = model if whole or stepped else torch.compile(model, backend="aot_eager")
def loss_of(x, y):
    weights = [p for p in model.parameters() if p.ndim > 1]
    return F.cross_entropy(net(x), y) + 1e-3 * sum(p.pow(2).sum() for p in weights)
if whole:
    loss_of = torch.compile(loss_of, backend="aot_eager")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
step = torch.compile(optimizer.step, backend="aot_eager") if stepped else optimizer.step
for _ in range(6):
    optimizer.zero_grad()
    loss_of(torch.randn(32, 6), torch.randint(0, 3, (32,))).backward()
    step()
from torch._dynamo.utils import counters
print([p.sum().item() for p in model.parameters()], dict(counters["frames"]))
"""


@pytest.mark.parametrize("whole", [False, True])
def test_compiled(whole, tmp_path):
    script = write(tmp_path, COMPILED)
    kind = "whole" if whole else "model"
    ended = command("doctor", "--json", "out.json", script, kind, cwd=tmp_path)
    assert ended.code == 0, ended.err
    (run,) = json.loads((tmp_path / "out.json").read_text("utf-8"))["runs"]
    penalties = [p for group in run["groups"] for p in group["penalties"]]
    if whole:
        assert penalties == []
        assert "can't be seen" in run["unseen"][0]
        assert run["findings"] == []
    else:
        assert penalties == [{"kind": "l2", "strength": pytest.approx(1e-3, rel=1e-5)}]
    # Compiled once, as without the doctor.
    assert "'total': 1, 'ok': 1" in ended.out


@pytest.mark.slow
def test_a_compiled_step_is_looked_at_and_moves_weights_as_alone(tmp_path):
    script = write(tmp_path, COMPILED)
    alone = plain(script, "step", cwd=tmp_path)
    ended = command("doctor", "--json", "out.json", script, "step", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert ended.out.partition("]")[0] == alone.out.partition("]")[0]
    assert "WARNING" not in ended.err
    (run,) = json.loads((tmp_path / "out.json").read_text("utf-8"))["runs"]
    assert (run["steps"], run["looked"]) == (6, 6)
    penalties = [p for group in run["groups"] for p in group["penalties"]]
    assert penalties == [{"kind": "l2", "strength": pytest.approx(1e-3, rel=1e-5)}]


@pytest.mark.frameworks
@pytest.mark.parametrize("name", ["with_trainer.py", "with_lightning.py", "accelerated.py"])
def test_trainers_of_others_are_sound(name, tmp_path):
    ended = command(
        "doctor", "--strict", "--json", "out.json", SCRIPTS / name, tmp_path / "w.pt", cwd=tmp_path
    )
    assert ended.code == 0, ended.err
    (run,) = json.loads((tmp_path / "out.json").read_text("utf-8"))["runs"]
    assert run["steps"] > 0
    assert run["unseen"] == []
