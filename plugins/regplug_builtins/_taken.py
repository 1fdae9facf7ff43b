"""Rates of modules that plugins set, each over the module's own, which the last one brings back."""

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from regplug import Plugin

__all__ = ["give_back", "holders", "own", "take"]


@dataclass
class _Taken:
    """One rate: the user's own, what stands there now, and who has put what in its place."""

    own: Any
    now: Any
    # By weak keys: a plugin holds its modules, which would live as long as this module does.
    holders: WeakKeyDictionary[Plugin, Any] = field(default_factory=WeakKeyDictionary)


_rates: WeakKeyDictionary[nn.Module, dict[str, _Taken]] = WeakKeyDictionary()


def holders(module: nn.Module, attribute: str) -> list[Plugin]:
    """Return the living plugins that have set the attribute."""
    found = _rates.get(module, {}).get(attribute)
    return [] if found is None else list(found.holders)


def own(module: nn.Module, attribute: str, now: Any) -> Any:
    """Return the user's own rate, which ``now`` is unless a plugin has set it."""
    found = _rates.get(module, {}).get(attribute)
    return now if found is None or found.now != now else found.own


def take(module: nn.Module, attribute: str, value: Any, own: Any, holder: Plugin) -> None:
    """Set the attribute until ``holder`` gives it back."""
    found = _rates.setdefault(module, {}).setdefault(attribute, _Taken(own, value))
    found.own, found.now = own, value
    found.holders[holder] = value
    setattr(module, attribute, value)


def give_back(module: nn.Module, attribute: str, holder: Plugin) -> None:
    """Set what stands there without ``holder``, in whichever order the holders give it back.

    A call that was interrupted may be made again.
    """
    found = _rates.get(module, {}).get(attribute)
    if found is None or holder not in found.holders:
        return
    left = [value for other, value in found.holders.items() if other is not holder]
    found.now = left[-1] if left else found.own
    setattr(module, attribute, found.now)
    if left:
        del found.holders[holder]
    else:
        del _rates[module][attribute]
