"""regplug's own plugins, where the program has attached some."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from regplug import sessions
from regplug.backend.marks import is_hook
from regplug.errors import RegplugError

__all__ = ["plugins_on"]


def plugins_on(optimizer: Optimizer) -> dict[str, list[tuple[str, bool]]]:
    """Return the plugins that act, by the names of parameters, and whether it is decay they do."""
    found: dict[str, list[tuple[str, bool]]] = {}
    try:
        attached = sessions.on(optimizer)
    except RegplugError:
        return {}
    for session in attached:
        for plugin in session.plugins:
            if names := _covered(plugin, session):
                strengths = ", ".join(f"{k} {value:g}" for k, value in plugin.strengths().items())
                acts = f"{plugin.name}({strengths})", _decays(plugin)
                for name in names:
                    found.setdefault(name, []).append(acts)
    return found


def _covered(plugin: Any, session: Any) -> Sequence[str]:
    covered = getattr(plugin, "covered", None)
    try:
        return covered(session) if callable(covered) else ()
    except RegplugError:
        return ()


def _decays(plugin: Any) -> bool:
    """Whether a plugin pulls weights in proportion to themselves: by its values, or its hook."""
    value = getattr(plugin, "value", None)
    if callable(value):
        try:
            once, twice = (float(value(torch.full((2, 2), size))) for size in (1.0, 2.0))
        except Exception:
            return False
        return once > 0 and math.isclose(twice, 4 * once, rel_tol=1e-4)
    return is_hook(getattr(plugin, "before_step", None))
