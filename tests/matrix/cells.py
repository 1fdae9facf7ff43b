"""The rows of the matrix, from the installed entry points, and the cells that cannot hold."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import regplug
from regplug.discovery import catalog
from tests.matrix.regimes import REGIMES
from tests.matrix.tasks import Regime

SCHEDULE = "linear(0.02, 0.06, steps=4)"
"""Given for each positional argument, its strengths, so that the count of real steps shows."""

KEYWORDS = {"cpr": ["init='dependent'", "kappa=0.9"]}
"""What a plugin is given besides, where it would have nothing to do in so few steps without."""


@dataclass(frozen=True)
class Row:
    """A plugin with one of its deliveries; ``delivery`` is empty for plugins that have none."""

    plugin: str
    delivery: str
    by_pattern: bool = False
    """Whether its strengths are another for the first layer."""

    @property
    def spec(self) -> str:
        parameters = inspect.signature(catalog.load_class(self.plugin)).parameters.values()
        positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        strength = f"{{'first.*': {SCHEDULE}, '*': 0.09}}" if self.by_pattern else SCHEDULE
        arguments = [strength] * len(positional) + KEYWORDS.get(self.plugin, [])
        if self.delivery:
            arguments.append(f"delivery={self.delivery!r}")
        return f"{self.plugin}({', '.join(arguments)})"

    def __str__(self) -> str:
        name = f"{self.plugin} by pattern" if self.by_pattern else self.plugin
        return f"{name}, {self.delivery}" if self.delivery else name


def rows() -> list[Row]:
    """Return a row for each delivery of each installed plugin."""
    found = []
    for name in catalog.names():
        cls = catalog.load_class(name)
        if cls.exam_model is not None:
            continue  # there is nothing for it in the model here: its own tests have it in loops
        if not issubclass(cls, regplug.Penalty):
            found.append(Row(name, ""))
            continue
        proximal = cls.proximal is not regplug.Penalty.proximal
        found += [Row(name, how) for how in ("step", "loss", *(["proximal"] if proximal else []))]
    return found + BY_PATTERN


BY_PATTERN = [
    *(Row("elastic_net", how, by_pattern=True) for how in ("step", "loss", "proximal")),
    Row("group_lasso", "step", by_pattern=True),
    Row("weight_decay", "", by_pattern=True),
]
"""One of each kind whose strengths are by pattern: of elements, of rows, and no penalty."""

REASONS = {
    "a": "Adam takes a step of its own for each element, for which this proximal operator has no "
    "closed form; refused at attach, which names the ways out",
    "b": "it penalizes activations, which are themselves rounded to bfloat16 there; not compared",
    "c": "it draws its noise in the dtype of the weights, so float64 has other noise; not compared",
    "d": "it draws its noise on the device, which has other noise than the CPU; not compared",
}
REFUSED = {"a"}
"""The reasons for which attaching is refused; the other cells are not run."""


def cannot(row: Row, regime: Regime, plugin: Any) -> str | None:
    """Return the letter of the reason why a cell cannot hold, None if it must."""
    if (
        row.delivery == "proximal"
        and regime.task.optimizer == "adam"
        and not plugin.separable
        and not plugin.elementwise_steps
    ):
        return "a"
    own_loss = hasattr(plugin, "on_loss") and not isinstance(plugin, regplug.Penalty)
    if own_loss and regime.task.exact:
        return "b"
    if getattr(plugin, "stochastic", False) and regime.task.exact:
        return "c"
    if getattr(plugin, "stochastic", False) and regime.task.device != "cpu":
        return "d"
    return None


def cells() -> list[tuple[str, Row]]:
    """Return all cells, row by row."""
    return [(regime, row) for row in rows() for regime in REGIMES]
