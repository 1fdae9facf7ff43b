"""Ranks that train one model together attach the same, or all of them say at once what differs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import regplug
from regplug.schedules import warmup
from regplug.session import agreement
from regplug_builtins import L1
from tests.helpers.pair import Pair, WorkerError
from tests.helpers.penalties import FailsOnOne


def model_of(kind: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "fsdp2":
        fully_shard(model)
    if kind == "ddp inside":
        model[0] = DistributedDataParallel(model[0])
    return model


def attach(rank: int, kind: str, specs: list[list[Any]]) -> Any:
    """Attach a list of plugins per rank; return the error and the seconds."""
    model = model_of(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    started = time.monotonic()
    try:
        regplug.attach(model, optimizer, specs[rank]).detach()
    except regplug.errors.RegplugError as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - started
    return "agreed", time.monotonic() - started


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_ranks_that_attach_the_same_agree_at_once(pair: Pair, kind: str) -> None:
    plugins = ["l1(linear(0, 1, steps=5))", "weight_decay(0.1)"]
    for words, seconds in pair.run(attach, kind, [plugins, plugins]):
        assert words == "agreed"
        assert seconds < 10


def test_a_model_of_which_a_part_is_in_ddp_is_of_all_its_ranks(pair: Pair) -> None:
    """They differed silently, and their weights drifted apart."""
    for words, _ in pair.run(attach, "ddp inside", [["l1(0.1)"], ["l1(0.2)"]]):
        assert "the ranks differ" in words
    for words, _ in pair.run(attach, "ddp inside", [["l1(0.1)"], ["l1(0.1)"]]):
        assert words == "agreed"


DIFFERENCES = {
    "strength": (["l1(0.1)"], ["l1(0.2)"], ["l1.strength", "0.1", "0.2", "rank 0", "rank 1"]),
    "selection": (["l1(0.1)"], ["l1(0.1, where='0.*')"], ["covers", "1.weight"]),
    "delivery": (["l1(0.1)"], ["l1(0.1, delivery='loss')"], ["delivery", "auto", "loss"]),
    "plugins": (["l1(0.1)"], ["l1(0.1)", "l2(0.1)"], ["l1, l2"]),
    "order": (["l1(0.1)", "l2(0.1)"], ["l2(0.1)", "l1(0.1)"], ["l1, l2", "l2, l1"]),
    "failure": (["l1(0.1)"], ["no_such_plugin(0.1)"], ["rank 1 failed", "no_such_plugin"]),
    "schedule": (
        ["l1(linear(0, 1, steps=5))"],
        ["l1(linear(0, 1, steps=6))"],
        ["l1.strength", "steps=5", "steps=6"],
    ),
}


@pytest.mark.parametrize("which", DIFFERENCES)
def test_a_difference_is_an_error_on_every_rank_that_shows_it(pair: Pair, which: str) -> None:
    """Nodes list entry points in another order, or have another version installed."""
    one, other, shown = DIFFERENCES[which]
    answers = pair.run(attach, "ddp", [one, other])
    for rank, (words, seconds) in enumerate(answers):
        assert seconds < 10
        if which == "failure" and rank == 1:
            assert words.startswith("PluginNotFoundError")
            continue
        assert all(part in words for part in shown), words


def attach_on_one(rank: int) -> Any:
    model = model_of("ddp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if rank == 1:
        time.sleep(3)  # whatever it does instead
        return None
    patience, started = agreement.PATIENCE, time.monotonic()
    agreement.PATIENCE = 1.0
    try:
        regplug.attach(model, optimizer, ["l1(0.1)"], name="on one rank")
    except regplug.errors.RegplugError as error:
        return str(error), time.monotonic() - started, patience
    finally:
        agreement.PATIENCE = patience


def test_a_rank_that_never_attaches_is_an_error_on_those_that_wait(pair: Pair) -> None:
    (words, seconds, patience), nothing = pair.run(attach_on_one)
    assert "rank 1 did not attach" in words
    assert 1 <= seconds < 10
    assert nothing is None
    assert patience < 60


def with_callables(rank: int) -> str:
    """Callables have another address in each process, which says nothing."""
    model = model_of("ddp")
    pad = [object() for _ in range(1000 * rank)]
    plugin = L1(warmup(lambda step: 0.1, 5), where=["weights", lambda name, p, module: True])
    plugin.settings = [len, lambda: pad]  # type: ignore[attr-defined]
    regplug.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), [plugin]).detach()
    return "agreed"


def test_callables_agree_by_what_they_come_to(pair: Pair) -> None:
    assert pair.run(with_callables) == ["agreed", "agreed"]


def test_bare_models_are_each_ranks_own_business(pair: Pair) -> None:
    for words, _ in pair.run(attach, "bare", [["l1(0.1)"], ["l2(0.5)"]]):
        assert words == "agreed"


# --- processes without a group, which end in a failure ------------------------------------------


@pytest.fixture(scope="module")
def loners() -> Iterator[Pair]:
    pair = Pair(group=False)
    yield pair
    pair.stop()


def first_step(rank: int, strengths: list[float]) -> str:
    """Attach before there is a process group, wrap the model later."""
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weights = model.weight.detach().clone()
    session = regplug.attach(model, optimizer, [f"l1({strengths[rank]})"])
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    wrapped = DistributedDataParallel(model)
    wrapped(torch.ones(1, 4)).sum().backward()
    try:
        optimizer.step()
    except regplug.errors.RegplugError as error:
        assert rank == 1 or torch.equal(model.weight, weights)
        return str(error)
    finally:
        session.detach()
    return "agreed"


def fail_on_one(rank: int) -> str:
    model = DistributedDataParallel(nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        with regplug.attach(model, optimizer, [FailsOnOne()]):
            while True:
                model(torch.ones(1, 4)).sum().backward()
                optimizer.step()
    except regplug.errors.PluginError:
        os._exit(1)  # as an uncaught error ends a process
    except regplug.errors.RegplugError as error:
        return f"{error} <- {type(error.__cause__).__name__}"


def test_attached_before_the_process_group_ranks_compare_at_the_first_step(loners: Pair) -> None:
    assert loners.run(first_step, [0.1, 0.1]) == ["agreed", "agreed"]
    for words in loners.run(first_step, [0.1, 0.3]):
        assert "l1.strength" in words
        assert "0.3 on rank 1" in words


def test_a_plugin_that_fails_on_one_rank_ends_the_others_with_its_name(loners: Pair) -> None:
    with pytest.raises(WorkerError) as raised:
        loners.run(fail_on_one, timeout=30)
    told = str(raised.value)
    assert "rank 1: died" in told
    assert "rank 0: ok" in told
    assert "rank 1 failed: PluginError: fails_on_one" in told
    assert "a bad day" in told
    assert "<- RuntimeError" in told  # what rank 0 itself saw: a lost connection
