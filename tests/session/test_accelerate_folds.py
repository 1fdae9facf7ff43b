"""One Accelerator over the folds of a cross-validation: the refusal is the line to write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import SpecError
from tests.helpers.accelerating import forget_accelerate

accelerate = pytest.importorskip("accelerate")


@pytest.fixture
def accelerator() -> Iterator[Any]:
    yield accelerate.Accelerator(cpu=True)
    forget_accelerate()


# What a loop over folds knows: it attaches, trains, and is left.
FOLD = """
for k in range(3):
    torch.manual_seed(k)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    {attach}
    for _ in range(k + 1):
        accelerator.backward(model(torch.ones(2, 3)).sum())
        optimizer.step()
        optimizer.zero_grad()
    accelerator.save_state(folder + str(k))
    sessions.append(session)
    {end}
"""
ATTACH = "session = regplug.attach(model, optimizer, ['l1(0.1)'], accelerator=accelerator)"


def run(accelerator: Any, tmp_path: Path, attach: str = ATTACH, end: str = "") -> list[Any]:
    found: dict[str, Any] = {
        "accelerator": accelerator,
        "folder": str(tmp_path / "fold"),
        "nn": nn,
        "regplug": regplug,
        "sessions": [],
        "torch": torch,
    }
    exec(FOLD.format(attach=attach, end=end), found)
    sessions: list[Any] = found["sessions"]
    return sessions


def message(accelerator: Any, tmp_path: Path) -> list[str]:
    with pytest.raises(SpecError, match="has a session named 'regplug' already") as raised:
        run(accelerator, tmp_path)
    return [line.strip() for line in str(raised.value).splitlines() if line.startswith("    ")]


def test_detaching_at_the_end_of_each_fold_is_a_line_of_the_message(
    accelerator: Any, tmp_path: Path
) -> None:
    line, _ = message(accelerator, tmp_path)
    assert line == "session.detach()"
    accelerator._save_model_state_pre_hook.clear()
    from regplug.session.accelerate import _sessions

    _sessions.clear()  # a program that was corrected starts anew
    sessions = run(accelerator, tmp_path, end=line)
    assert [session.steps for session in sessions] == [1, 2, 3]
    for k in range(3):
        saved = list((tmp_path / f"fold{k}" / "regplug").iterdir())
        assert [path.name for path in saved] == ["regplug.pt"]
        assert torch.load(saved[0], weights_only=True)["state"]["steps"] == k + 1


def test_a_name_for_each_fold_is_the_other(accelerator: Any, tmp_path: Path) -> None:
    _, line = message(accelerator, tmp_path)
    assert line == "regplug.attach(…, name=f'fold{k}')"
    attach = ATTACH[:-1] + line.partition("…")[2]
    sessions = run(accelerator, tmp_path, attach=attach)
    assert [session.steps for session in sessions] == [1, 2, 3]
    assert [session.name for session in sessions] == ["fold0", "fold1", "fold2"]
    accelerator.load_state(str(tmp_path / "fold2"))
    assert [session.steps for session in sessions] == [1, 2, 3]
    for session in sessions:
        session.detach()
