"""What the loop has measured reaches plugins and recorders: ``session.note(val_loss=…)``."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import regplug
from regplug.report import Recorder
from regplug.session import agreement
from tests.helpers.nets import one_layer
from tests.helpers.pair import Pair


class Listens(regplug.Plugin):
    changes_weights = False

    def __init__(self, name: str | None = None) -> None:
        self.heard: list[Any] = []
        self.name = name

    @regplug.hookimpl
    def on_note(self, session: Any, values: Any) -> None:
        self.heard.append((session.steps, torch.is_grad_enabled(), dict(values)))


class Told(regplug.Plugin):
    changes_weights = False
    times = 0

    @regplug.hookimpl
    def on_note(self) -> None:  # a hook takes only what it names
        self.times += 1


class Fails(regplug.Plugin):
    @regplug.hookimpl
    def on_note(self, values: Any) -> None:
        raise ZeroDivisionError(f"of {values['loss']}")


def test_plugins_hear_it_in_order_with_grad_off() -> None:
    first, second, told = Listens("first"), Listens("second"), Told()
    model = one_layer(1.0, 2.0)
    loss = model(torch.ones(1, 2, dtype=torch.float64)).sum()
    with regplug.attach(model, plugins=[first, "l2(0.1)", told, second]) as session:
        session.note(loss=loss, words={"any": "thing"})
        session.note()
    session.note(loss=3.0)  # detached: nobody asks
    step, grad, values = first.heard[0]
    assert (step, grad, values["words"]) == (0, False, {"any": "thing"})
    assert values["loss"].item() == 3.0
    assert not values["loss"].requires_grad
    assert [heard[2].keys() for heard in second.heard] == [{"loss", "words"}, set()]
    assert told.times == 2


def test_a_failure_names_the_plugin() -> None:
    session = regplug.attach(one_layer(1.0), plugins=["l2(0.1)", Fails()])
    with pytest.raises(regplug.errors.PluginError, match=r"fails .* failed in on_note at step 0"):
        session.note(loss=2)


def test_recorders_write_down_what_is_a_number() -> None:
    model = one_layer(1.0, 2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, ["l2(0.1)"])
    with Recorder(session) as recorder:
        for step in range(3):
            model.weight.grad = torch.ones_like(model.weight)
            session.note(val_loss=torch.tensor(0.5 * step), words="left out", pair=torch.ones(2))
            optimizer.step()
    assert [row.get("val_loss") for row in recorder.rows] == [None, 0.0, 0.5, 1.0]
    assert not any("words" in row or "pair" in row for row in recorder.rows)
    session.note(val_loss=9.0)  # to a recorder that is closed
    recorder.record()
    assert recorder.rows[-1]["val_loss"] == 1.0
    with Recorder(session), pytest.raises(regplug.errors.SpecError, match="step is the recorder's"):
        session.note(step=1)


class GapL2(regplug.Adaptive, regplug.Penalty):
    separable = True

    def value(self, w: torch.Tensor) -> torch.Tensor:
        return w.square().sum()

    @regplug.hookimpl
    def on_note(self, session: Any, values: Any) -> None:
        self.strength = float(values["gap"])


def noted(rank: int, gaps: list[list[Any]], patience: float) -> list[Any]:
    """Return the strengths that ranks come to, or what they fail with."""
    model = DistributedDataParallel(nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = regplug.attach(model, optimizer, [GapL2(0.0)], name=f"notes {gaps}")
    before, agreement.PATIENCE = agreement.PATIENCE, patience
    found: list[Any] = []
    begun = time.monotonic()
    try:
        for by_rank in gaps:
            if by_rank[rank] is not None:
                session.note(gap=torch.tensor(by_rank[rank]))
                found.append(session.plugins[0].strength)
    except regplug.errors.RegplugError as error:
        found.append(str(error))
    finally:
        agreement.PATIENCE = before
        session.detach()
    assert time.monotonic() - begun < 20
    return found


def test_ranks_that_note_the_same_go_on(pair: Pair) -> None:
    assert pair.run(noted, [[0.5, 0.5], [0.25, 0.25]], 30.0) == [[0.5, 0.25], [0.5, 0.25]]


def test_ranks_that_note_different_values_fail_alike_and_are_told_the_way_out(pair: Pair) -> None:
    first, second = pair.run(noted, [[0.5, 0.5], [0.5, 0.25]], 30.0)
    assert first == second
    assert "gap: 0.5 on rank 0, 0.25 on rank 1" in first[-1]
    assert "accelerator.reduce" in first[-1]


def test_a_rank_that_notes_nothing_is_named(pair: Pair) -> None:
    (words,), nothing = pair.run(noted, [[0.5, None]], 0.5)
    assert "rank 1 did not note anything within" in words
    assert nothing == []


def alone(rank: int) -> list[float]:
    """Return what a bare model's session hears: each rank is on its own."""
    plugin = Listens()
    with regplug.attach(nn.Linear(2, 1), plugins=[plugin]) as session:
        session.note(loss=float(rank))
    return [heard[2]["loss"] for heard in plugin.heard]


def test_bare_models_are_each_ranks_own_business(pair: Pair) -> None:
    assert pair.run(alone) == [[0.0], [1.0]]
