"""Whether a parameter group may be left to the optimizer's own update: what that depends on."""

from collections.abc import Mapping
from typing import Any

from regplug import Plugin, is_hook

__all__ = ["hears", "taking"]


def hears(plugin: Plugin, *events: str) -> bool:
    """Whether a plugin acts in any of these events."""
    return any(is_hook(getattr(plugin, event, None)) for event in events)


def taking(group: Mapping[str, Any]) -> int:
    """Return how many parameters of a group have a gradient, and so take part in its step."""
    return sum(p.grad is not None for p in group["params"])
