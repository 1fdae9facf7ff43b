"""torch.distributed.checkpoint holds a session's state, each rank its part, for any mesh."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

import regplug
from regplug.errors import StateError
from regplug.integrations.checkpoint import stateful
from tests.distributed.spreading import PARTS, make, remembered, same, spread, take, weights_of
from tests.helpers.pair import Pair
from tests.helpers.penalties import Remembers

# In one process torch tells that it is one.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

PLUGINS = [
    "l2_sp(linear(0.1, 0.5, steps=4), where='all')",
    "gradient_noise(0.1)",
    "l1(linear(0, 0.2, steps=4), delivery='proximal')",
    "cpr(init='dependent', kappa=0.9, where='4.*')",
]


class Sums(Remembers):
    """Keeps the sums as what they are: tensors sharded like the weights. Its metrics show them."""

    @regplug.hookimpl
    def on_attach(self, session: Any) -> None:
        covered = session.coverage(regplug.Selection("weights"))
        self._sums = {e.name: torch.zeros_like(e.parameter.detach()) for e in covered}

    @regplug.hookimpl
    def on_gradients(self, session: Any) -> None:
        for entry in session.coverage(regplug.Selection("weights")):
            self._sums[entry.name] = self._sums[entry.name] + entry.parameter.grad

    @regplug.hookimpl
    def on_load_state(self, state: dict[str, torch.Tensor]) -> None:
        for name, own in self._sums.items():
            part = regplug.part(regplug.full(state[name]), own)
            self._sums[name] = regplug.like(part, own)

    @regplug.hookimpl
    def on_metrics(self) -> dict[str, float]:
        return {name: regplug.full(s).square().sum().item() for name, s in self._sums.items()}


def run(rank: int, how: str, steps: range, folder: str, load: bool, save: bool) -> Any:
    """Train some steps on a mesh, from what was saved on whatever mesh; and save."""
    model = make()
    spread(model, how)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, foreach=False)
    with regplug.attach(model, optimizer, [*PLUGINS, Sums()]) as session:
        state = {"regplug": stateful(session)}
        if load:
            weights, moments = get_state_dict(model, optimizer)
            checkpoint.load({"model": weights, "optimizer": moments, **state}, checkpoint_id=folder)
            set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
            assert session.steps == steps.start
        take(model, optimizer, session, steps, rank * PARTS[how] // 4, PARTS[how])
        if save:
            weights, moments = get_state_dict(model, optimizer)
            checkpoint.save({"model": weights, "optimizer": moments, **state}, checkpoint_id=folder)
        figures = session.metrics()
    return {n: w.tolist() for n, w in weights_of(model).items()}, figures


@pytest.mark.parametrize(
    ("first", "then"), [("2×2", "4"), ("4", "2×2"), ("2×2", "1"), ("1", "2×2")]
)
def test_a_run_goes_on_on_another_mesh(four: Pair, tmp_path: Path, first: str, then: str) -> None:
    wanted = run(0, "1", range(4), str(tmp_path / "none"), False, False)

    def on(how: str, *arguments: Any) -> list[Any]:
        arguments = (how, arguments[0], str(tmp_path), *arguments[1:])
        return [run(0, *arguments)] if how == "1" else four.run(run, *arguments)

    on(first, range(2), False, True)
    for found in on(then, range(2, 4), True, False):
        same(found, wanted)


def parts(rank: int, how: str) -> list[tuple[str, list[int]]]:
    model = make()
    spread(model, how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with regplug.attach(model, optimizer, ["l2_sp(0.1)", "l1(0.1)"]) as session:
        state = stateful(session).state_dict()
        whole = session.state_dict()["plugins"]["l2_sp"]["anchors"]
    assert all(type(anchor) is torch.Tensor for anchor in whole.values())
    assert all(isinstance(anchor, DTensor) for anchor in state["tensors"].values())
    return [
        (name, list(anchor.to_local().shape), len(state["rest"]))
        for name, anchor in state["tensors"].items()
    ]


def test_each_rank_writes_its_part_alone(four: Pair) -> None:
    ranks = four.run(parts, "2×2")
    for anchors in zip(*ranks, strict=True):
        ((name,), shapes, _) = ({n for n, *_ in anchors}, [s for _, s, _ in anchors], 0)
        place = next(key for key in ("0", "2", "4") if f"{key}.weight" in name)
        whole = make()[int(place)].weight
        alike = 2 if place == "4" else 1  # the last is on one dimension of the mesh alone
        assert sum(rows * columns for rows, columns in shapes) == alike * whole.numel()
    assert all(size < 4000 for rank in ranks for *_, size in rank)


def save(folder: str, session: Any, rank: int, how: str) -> None:
    checkpoint.save({"regplug": stateful(session)}, checkpoint_id=folder)


def load(folder: str, session: Any, rank: int, how: str) -> None:
    checkpoint.load({"regplug": stateful(session)}, checkpoint_id=folder)


def test_what_each_rank_keeps_for_itself_comes_back_to_it_or_is_refused(
    four: Pair, tmp_path: Path
) -> None:
    saves, loads = partial(save, str(tmp_path)), partial(load, str(tmp_path))
    saved = four.run(remembered, "2×2", saves, None)
    assert saved[0] != saved[1]
    assert four.run(remembered, "2×2", None, loads) == saved
    for told in four.run(remembered, "4", None, loads):
        assert "is spread otherwise now" in told
    told = remembered(0, "1", None, loads)
    assert "its part on each of 4 ranks" in told
    assert "regplug.like" in told


class Grows(Sums):
    """Has its tensors from the first step on alone."""

    @regplug.hookimpl
    def on_attach(self, session: Any) -> None:
        self._sums = {}

    @regplug.hookimpl
    def on_gradients(self, session: Any) -> None:
        for entry in session.coverage(regplug.Selection("weights")):
            self._sums[entry.name] = entry.parameter.grad


def too_late(rank: int, how: str) -> str:
    model = make()
    spread(model, how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with regplug.attach(model, optimizer, [Grows()]) as session:
        fresh = stateful(session).state_dict()
        take(model, optimizer, session, range(1), rank * PARTS[how] // 4, PARTS[how])
        saved = stateful(session).state_dict()
        with pytest.raises(StateError) as error:
            stateful(session).load_state_dict({**saved, "tensors": fresh["tensors"]})
    return str(error.value)


def test_tensors_for_which_there_is_no_place_are_told_of(four: Pair) -> None:
    for told in four.run(too_late, "4"):
        assert "nothing to load into" in told
        assert "from on_attach on" in told
