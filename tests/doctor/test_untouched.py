"""What the doctor must not change: weights, random numbers, state, hooks, and what is printed."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import optimizer as optim_module

from regplug import doctor
from tests.command.forked import command, plain
from tests.command.writing import write
from tests.doctor.diagnosing import diagnosed, undiagnosed
from tests.doctor.test_findings import FINDINGS
from tests.doctor.test_sound import SOUND

CASES = {
    "AdamW": "model = Net(0.3); train(model, torch.optim.AdamW(model.parameters()), steps=60)",
    "SGD, fused": """
        model = Net(0.3)
        train(model, torch.optim.SGD(split(model, 0.1), lr=0.1, momentum=0.9, fused=True))
    """,
    "dropout": SOUND["evaluation between epochs"],
    "scaled": SOUND["a loss scale"],
    "LBFGS": SOUND["LBFGS"],
    "anchored": SOUND["L2-SP"],
    "detached": FINDINGS["detached-penalty: item"],
    "clipped": FINDINGS["clipped-away"],
    "frozen": FINDINGS["frozen-decay"],
}


@pytest.mark.parametrize("case", CASES)
def test_weights_and_random_numbers_are_the_same_to_the_bit(case):
    alone = undiagnosed(CASES[case])
    following, examined = torch.rand(1), {}
    diagnosed(CASES[case], scope=examined)
    assert torch.equal(torch.rand(1), following)
    pairs = zip(alone["model"].parameters(), examined["model"].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_state_step_counts_and_schedules_are_the_loops_own(kind):
    states = []
    for examined in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        report = doctor.examine(model, optimizer)
        if examined:
            report.__enter__()
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(3, 4)).square().mean().backward()
            optimizer.step()
            schedule.step()
        if examined:
            report.__exit__(None, None, None)
        states.append((optimizer.state_dict(), schedule.state_dict()))
    assert str(states[0]) == str(states[1])
    assert set(vars(optimizer)) == set(vars(kind([nn.Parameter(torch.ones(1))], lr=0.1))) | {
        name for name in vars(optimizer) if name in ("step", "_opt_called")
    }


def test_hooks_of_others_see_no_step_on_a_copy():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("own"))
    handle = optim_module.register_optimizer_step_post_hook(lambda *_: seen.append("global"))
    with doctor.examine(model, optimizer):
        for _ in range(3):
            model(torch.ones(3, 4)).sum().backward()
            optimizer.step()
    handle.remove()
    assert seen == ["own", "global"] * 3


def test_nothing_is_left_behind():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    backward, grad = torch.autograd.backward, torch.autograd.grad
    with doctor.examine(model, optimizer):
        for _ in range(3):
            model(torch.ones(3, 4)).sum().backward()
            optimizer.step()
            copy.deepcopy(model)
    assert torch.autograd.backward is backward
    assert torch.autograd.grad is grad
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert torch.overrides._get_current_function_mode_stack() == []


def test_output_and_exit_status_are_the_scripts_own(tmp_path):
    script = write(
        tmp_path,
        """
import sys, torch
torch.manual_seed(0)
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
for _ in range(30):
    optimizer.zero_grad()
    loss = model(torch.randn(3, 4)).square().mean()
    loss.backward()
    optimizer.step()
    print(loss.item())
sys.exit(int(sys.argv[1]))
""",
    )
    alone = plain(script, "0", cwd=tmp_path)
    for status, strict, expected in (("0", [], 0), ("5", ["--strict"], 5), ("0", ["--strict"], 3)):
        ended = command("doctor", *strict, "--json", "out.json", script, status, cwd=tmp_path)
        assert ended.code == expected, ended.err
        assert ended.out == alone.out
        assert "decays-bias-or-norm" in ended.err
        (run,) = json.loads(Path(tmp_path / "out.json").read_text("utf-8"))["runs"]
        assert run["model"] == "model"
        assert run["optimizer"] == "AdamW"
        assert run["steps"] == 30


def test_a_module_and_wrong_arguments(tmp_path):
    write(tmp_path, "import sys; print(__name__, sys.argv[1:])", "package/train.py")
    write(tmp_path, "", "package/__init__.py")
    ended = command("doctor", "--steps", "3", "-m", "package.train", "--lr", "1", cwd=tmp_path)
    assert (ended.code, ended.out) == (0, "__main__ ['--lr', '1']\n")
    assert "no optimizer of torch took a step" in ended.err
    assert command("doctor", "nowhere.py", cwd=tmp_path).code == 2
    ended = command("doctor", "--json", "no/where.json", "-m", "package.train", cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert command("doctor", "--steps", "0", "nowhere.py", cwd=tmp_path).code == 2
