"""The workers themselves: results, errors and hangs come back with their names."""

import time

import pytest
import torch
import torch.distributed as dist

from tests.helpers.pair import Pair, WorkerError


def total(rank: int, factor: float) -> float:
    number = torch.tensor(float(rank + 1))
    dist.all_reduce(number)
    return number.item() * factor


def fail_on_one(rank: int) -> None:
    if rank == 1:
        raise ValueError("only here")


def hang_on_one(rank: int) -> None:
    if rank == 1:
        time.sleep(600)


def test_both_ranks_answer(pair: Pair) -> None:
    assert pair.run(total, 2.0) == [6.0, 6.0]


def test_an_error_and_a_hang_are_named_and_the_next_run_works(pair: Pair) -> None:
    with pytest.raises(WorkerError, match=r"(?s)fail_on_one.*rank 1: raises.*only here"):
        pair.run(fail_on_one)
    with pytest.raises(WorkerError, match=r"(?s)hang_on_one.*rank 1: hangs.*in hang_on_one"):
        pair.run(hang_on_one, timeout=2)
    assert pair.run(total, 1.0) == [3.0, 3.0]
