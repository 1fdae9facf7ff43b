"""Ranks that attach after the others gave up fail as those did; nobody trains alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import regplug
from regplug.session import agreement
from tests.helpers.pair import Pair


@pytest.fixture(scope="module")
def three() -> Iterator[Pair]:
    group = Pair(size=3)
    yield group
    group.stop()


def attach(name: str, specs: list[str], patience: float, after: float = 0.0) -> str:
    model = DistributedDataParallel(nn.Linear(4, 2))  # waits for all of them
    time.sleep(after)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before, agreement.PATIENCE = agreement.PATIENCE, patience
    try:
        session = regplug.attach(model, optimizer, specs, name=name)
    except regplug.errors.RegplugError as error:
        assert not optimizer._optimizer_step_pre_hooks  # type: ignore[attr-defined]
        return str(error)
    finally:
        agreement.PATIENCE = before
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    steps = session.steps
    session.detach()
    return f"trained {steps}"


def late(rank: int, late_ones: list[int], seconds: float) -> list[str]:
    """Attach, some ranks after the patience of the others; then all of them once more."""
    seconds = seconds if rank in late_ones else 0
    first = attach("late", ["l1(0.1)"], patience=0.8, after=seconds)
    dist.barrier()
    return [first, attach("late", ["l1(0.1)"], patience=30)]


@pytest.mark.parametrize("late_ones", [[2], [1, 2], [0]])
def test_a_rank_that_comes_late_fails_as_those_that_gave_up(
    three: Pair, late_ones: list[int]
) -> None:
    answers = three.run(late, late_ones, 2.5)
    words = {first for first, _ in answers}
    assert len(words) == 1  # the same on every rank
    assert "did not attach it within" in next(iter(words))
    assert all(f"{rank}" in next(iter(words)) for rank in late_ones)
    assert [second for _, second in answers] == ["trained 1"] * 3


def late_to_a_failure(rank: int) -> str:
    """One rank can't attach at all, one comes when the third has long been told so."""
    specs = ["no_such_plugin(1)" if rank == 0 else "l1(0.1)"]
    return attach("failing", specs, patience=30, after=2 * (rank == 2))


def late_to_a_difference(rank: int) -> str:
    specs = [f"l1({0.1 if rank != 1 else 0.2})"]
    return attach("differing", specs, patience=30, after=2 * (rank == 2))


def test_a_rank_that_comes_late_to_a_failure_or_a_difference_is_told_of_it(three: Pair) -> None:
    failing, *others = three.run(late_to_a_failure)
    assert "no_such_plugin" in failing
    assert all("rank 0 failed" in words for words in others)
    answers = three.run(late_to_a_difference)
    assert len(set(answers)) == 1
    assert "l1.strength" in answers[0]


def slowly(rank: int) -> str:
    """A rank that is late, but not too late."""
    return attach("slow", ["l1(0.1)"], patience=30, after=1.0 * rank)


def test_a_rank_that_is_slow_is_waited_for(three: Pair) -> None:
    assert three.run(slowly) == ["trained 1"] * 3


def closely(rank: int, rounds: int) -> list[str]:
    """Arrive just as the patience of the others ends: both attach, or neither does."""
    found = []
    for turn in range(rounds):
        after = 0.1 + 0.01 * (turn - rounds // 2) if rank == 0 else 0
        found.append(attach(f"close {turn}", ["l1(0.1)"], patience=0.1, after=after)[:7])
        dist.barrier()
    return found


def test_the_verdict_is_the_same_on_every_rank_also_at_the_last_moment(three: Pair) -> None:
    """Else a rank would wait in backward for those that raised."""
    answers: list[Any] = three.run(closely, 8)
    assert all(len(set(verdicts)) == 1 for verdicts in zip(*answers, strict=True))
