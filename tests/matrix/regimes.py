"""Ways of training one small model: each takes a spec and returns the weights that came out.

A regime states its *task* (the optimizer, the micro-batches of each step, clipping, the data) and
runs it in its own way: in parts, on two ranks, sharded, compiled, by hand. The reference computes
what the task alone says, so all regimes of one task must give the same weights.
"""

from __future__ import annotations

import copy
import functools

import regplug
from regplug.discovery import catalog
from tests.matrix import accelerated, alone, meshed, ranks
from tests.matrix.tasks import Outcome, Regime

# In the order of the table.
REGIMES: dict[str, Regime] = {
    **alone.REGIMES,
    **ranks.REGIMES,
    **meshed.REGIMES,
    **accelerated.REGIMES,
}


@functools.cache
def plugin_of(spec: str) -> regplug.Plugin:
    """Return the plugin, to be copied; finding entry points again for each cell takes long."""
    return catalog.load(spec)


def run(rank: int, name: str, spec: str) -> Outcome | str:
    """Run a regime; on each rank, if it has several. A refusal is returned as its text."""
    chosen = REGIMES[name]
    try:
        plugin = chosen.task.widened(copy.deepcopy(plugin_of(spec)))
        return chosen.run(chosen.task, plugin, rank, chosen.count).plain()
    except regplug.errors.UnsupportedError as error:
        return str(error)
