"""λ is λ: each plugin in each regime gives the weights of one process in float64."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from tests.matrix.cells import REFUSED, Row, cannot, cells, rows
from tests.matrix.reference import by_formula, reference
from tests.matrix.regimes import REGIMES, plugin_of, run
from tests.matrix.tasks import DEVICE, Outcome, Task

pytestmark = pytest.mark.matrix


@functools.cache
def expected(task: Task, row: Row) -> Outcome:
    return reference(task, plugin_of(row.spec), row.delivery)


@functools.cache
def is_random(row: Row) -> bool:
    """Whether the weights depend on the seed, as dropout's do."""
    plugin = plugin_of(row.spec)
    if by_formula(plugin):
        return False
    first, *others = (seeded(seed, plugin) for seed in range(10))
    return any((w != other[name]).any() for other in others for name, w in first.items())


def seeded(seed: int, plugin: Any) -> dict[str, Any]:
    torch.manual_seed(seed)
    return reference(Task(), plugin, "").weights


def largest_error(found: Outcome | str, wanted: Outcome, random: bool) -> float:
    """Over all weights, or where these are random over what the plugin reports at each step."""
    assert not isinstance(found, str), found
    assert len(found.metrics) == len(wanted.metrics)
    error = 0.0
    for ours, theirs in zip(found.metrics, wanted.metrics, strict=True):
        assert set(theirs) <= set(ours)
        error = max([error, *(abs(ours[key] - value) for key, value in theirs.items())])
    if random:
        return error
    assert set(found.weights) == set(wanted.weights)
    for name, value in wanted.weights.items():
        ours = torch.tensor(found.weights[name], dtype=torch.float64).reshape(value.shape)
        error = max(error, (ours - value.double()).abs().max().item())
    return error


@pytest.mark.parametrize("row", rows(), ids=str)
def test_the_reference_itself_shows_the_plugin(row: Row) -> None:
    """A matrix of plugins that do nothing would hold as well."""
    wanted = expected(Task(), row)
    without = reference(Task(), plugin_of("l2(0)"), "step")
    moved = max((w - without.weights[n]).abs().max().item() for n, w in wanted.weights.items())
    assert is_random(row) or moved > 1e-4


@pytest.mark.parametrize(("regime", "row"), cells(), ids=str)
def test_cell(regime: str, row: Row, request: Any, record: dict[Any, Any]) -> None:
    chosen = REGIMES[regime]
    why = cannot(row, chosen, plugin_of(row.spec))
    if why is not None:
        record[str(row), regime] = why
        if why not in REFUSED:
            return
    if chosen.of_ranks:
        held = {None: "workers", 2: "pair", 4: "four"}[chosen.ranks]
        found = request.getfixturevalue(held).run(run, regime, row.spec)
    else:
        found = [run(0, regime, row.spec)]
    if why is not None:
        assert all(isinstance(refusal, str) for refusal in found)
        return
    wanted = expected(chosen.task, row)
    error = max(largest_error(each, wanted, is_random(row)) for each in found)
    record[str(row), regime] = error
    assert all(each.weights == found[0].weights for each in found), "the ranks drift apart"
    assert all(each.metrics == found[0].metrics for each in found), "the ranks report differently"
    assert error < (2e-5 if chosen.task.exact else 1e-12 if DEVICE == "cpu" else 1e-11)
