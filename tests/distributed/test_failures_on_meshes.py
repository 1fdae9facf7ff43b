"""A rank of a 2×2 mesh that fails in a plugin's hook, or dies there, ends all the others soon."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import regplug
from tests.helpers.meshes import data_and_model
from tests.helpers.pair import Pair, WorkerError

BACKWARD = "the backward pass of on_loss"
PLACES = ("on_loss", "on_gradients", "before_step", "after_step")


class BadDay(regplug.Plugin):
    """Fails on one rank in its third step, in one hook."""

    def __init__(self, place: str, rank: int, *, dies: bool = False) -> None:
        self._place, self._rank, self._dies = place, rank, dies

    def _at(self, place: str, session: Any) -> None:
        if (place, dist.get_rank(), session.steps) == (self._place, self._rank, 2):
            if self._dies:
                os._exit(1)
            raise ValueError("a bad day")

    @regplug.hookimpl
    def on_loss(self, session: Any) -> None:
        self._at("on_loss", session)

    @regplug.hookimpl
    def on_gradients(self, session: Any) -> None:
        self._at("on_gradients", session)

    @regplug.hookimpl
    def before_step(self, session: Any) -> None:
        self._at("before_step", session)

    @regplug.hookimpl
    def after_step(self, session: Any) -> None:
        self._at("after_step", session)


class BadGradient(regplug.Penalty):
    """Fails on one rank in its third step, in the backward pass."""

    def __init__(self, rank: int) -> None:
        super().__init__(0.1, delivery="loss")
        self._rank, self._passes = rank, 0

    def value(self, w: torch.Tensor) -> torch.Tensor:
        return w.square().sum()

    def gradient(self, w: torch.Tensor) -> torch.Tensor:
        self._passes += w.numel() == 16  # of the first layer, which is whole here
        if dist.get_rank() == self._rank and self._passes == 3:
            raise ValueError("a bad day")
        return 2 * w


def fail(rank: int, folder: str, place: str, which: int, dies: bool) -> None:
    """Train until it fails, leave word of what this rank says and saw, and end."""
    dist.init_process_group("gloo")  # with its half an hour
    mesh = data_and_model(2, 2)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2), nn.Tanh())
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # What comes after it communicates, and would be blamed for the lost connection.
    bad = BadGradient(which) if place == BACKWARD else BadDay(place, which, dies=dies)
    plugins = ["l1(0.1, delivery='loss')", bad, "group_lasso(0.1, delivery='step')"]
    try:
        with regplug.attach(model, optimizer, plugins) as session:
            while True:
                if (place, rank, session.steps) == ("the loop", which, 2):
                    raise ValueError("a bad day")
                session.loss(model(torch.ones(2, 4)).square().mean()).backward()
                optimizer.step()
                optimizer.zero_grad()
    except BaseException as error:
        words = f"{type(error).__name__}: {error} <- {type(error.__cause__).__name__}"
        (Path(folder) / str(rank)).write_text(words)
    os._exit(1)  # as an uncaught error ends a process


def told_of(folder: Path, place: str, which: int, *, dies: bool = False) -> dict[int, str]:
    """Return what each rank had to say; all of them have ended within a minute."""
    loners = Pair(4, group=False)
    began = time.monotonic()
    try:
        with pytest.raises(WorkerError) as raised:
            loners.run(fail, str(folder), place, which, dies, timeout=55)
    finally:
        loners.stop()
    assert time.monotonic() - began < 60
    assert str(raised.value).count("died") == 4, str(raised.value)
    return {int(file.name): file.read_text() for file in folder.iterdir()}


def check_names(folder: Path, place: str, which: int) -> None:
    told = told_of(folder, place, which)
    assert len(told) == 4
    bad = "bad_gradient" if place == BACKWARD else "bad_day"
    for rank, words in told.items():
        assert f"PluginError: {bad}" in words
        assert f"failed in {place} at step 2: ValueError: a bad day" in words
        if rank != which:
            assert f"rank {which} failed" in words
            assert words.endswith(("<- RuntimeError", "<- PluginError"))  # what it saw itself


def test_a_plugin_that_fails_on_one_of_four_ends_the_others_with_rank_plugin_and_place(
    tmp_path: Path,
) -> None:
    """Also the one that shares no dimension of the mesh with it."""
    check_names(tmp_path, "on_gradients", 1)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 3])
@pytest.mark.parametrize("place", PLACES)
def test_wherever_it_fails(tmp_path: Path, place: str, which: int) -> None:
    check_names(tmp_path, place, which)


@pytest.mark.slow
def test_a_backward_pass_that_fails_is_told_of(tmp_path: Path) -> None:
    """Others were in a backward pass, too, whose plugin was blamed for the lost connection."""
    check_names(tmp_path, BACKWARD, 1)


@pytest.mark.slow
def test_an_error_of_the_loop_itself_is_told_of(tmp_path: Path) -> None:
    told = told_of(tmp_path, "the loop", 1)
    assert told.pop(1) == "ValueError: a bad day <- NoneType"
    assert len(told) == 3
    for words in told.values():
        assert "session 'regplug': rank 1 failed: ValueError: a bad day" in words


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_rank_that_dies_in_a_hook_ends_the_others(tmp_path: Path, place: str) -> None:
    """It leaves no word; what they tell is the lost connection."""
    told = told_of(tmp_path, place, 2, dies=True)
    assert set(told) == {0, 1, 3}
    for words in told.values():
        assert "onnection" in words
