"""The figures of a session: what its plugins report, and their names in a log of several."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from regplug.backend.gradmode import without_grad
from regplug.backend.sums import Sum, resolve
from regplug.plugin import Plugin
from regplug.session.calls import Calls, described, is_number
from regplug.view import SessionView

__all__ = ["NamedFigures", "measured"]


def measured(session: SessionView, plugins: Iterable[Plugin], calls: Calls) -> dict[str, float]:
    """Ask ``plugins`` for their figures: a collective where parameters are sharded."""
    found: dict[str, Any] = {}
    for plugin in plugins:
        reported = without_grad(calls.mapping, plugin, "on_metrics", session)
        for key, value in reported.items():
            if not isinstance(value, Sum) and not is_number(value):
                wrong = f"{key!r} must be a float, a 0-d tensor or a Sum, got {described(value)}"
                calls.blame(TypeError(wrong), "on_metrics", session, plugin)
            # Tensors are read with all the others: one wait for a device.
            read = Sum([(value, value)]) if type(value) is torch.Tensor else value
            found[f"{plugin.name}/{key}"] = read
    sums = {key: value for key, value in found.items() if isinstance(value, Sum)}
    found.update(zip(sums, resolve(list(sums.values())), strict=True))
    return {key: float(value) for key, value in found.items()}


class NamedFigures(dict[str, float]):
    """Figures under the name of their session; code that reads one need not know the name.

    >>> figures = NamedFigures("critic", {"l1/value": 0.5})
    >>> figures, "l1/value" in figures, figures["l1/value"], figures.get("l2/value")
    ({'critic/l1/value': 0.5}, True, 0.5, None)
    """

    def __init__(self, name: str, figures: Mapping[str, float]) -> None:
        super().__init__({f"{name}/{key}": value for key, value in figures.items()})
        self._name = name

    def __missing__(self, key: str) -> float:
        full = f"{self._name}/{key}"
        if super().__contains__(full):
            return super().__getitem__(full)
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or super().__contains__(f"{self._name}/{key}")

    def get(self, key: str, default: Any = None) -> Any:
        """Return a figure by its name, with or without the session's, or ``default``."""
        return self[key] if key in self else default  # noqa: SIM401 - it would call itself
