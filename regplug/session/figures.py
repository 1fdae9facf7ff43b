"""What metrics are called where several sessions are logged together."""

from collections.abc import Mapping
from typing import Any

__all__ = ["NamedFigures"]


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
