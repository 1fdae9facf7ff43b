"""Words in messages: the nearest names to one that is not there."""

import difflib
from collections.abc import Iterable

from torch.nn.parameter import is_lazy

from regplug.backend.names import Named

__all__ = ["nearest"]


def nearest(wanted: str, names: Iterable[str], most: int = 3) -> list[str]:
    """Return up to ``most`` of ``names`` that look like ``wanted``, or simply the first ones."""
    names = list(dict.fromkeys(names))
    return difflib.get_close_matches(wanted, names, n=most, cutoff=0.4) or names[:most]


def shown(known: Iterable[Named]) -> str:
    trainable = [named for named in known if named.parameter.requires_grad]
    lazy = sum(is_lazy(named.parameter) for named in trainable)
    without = f" ({lazy} lazy, with no shape yet)" if lazy else ""
    return listed(named.name for named in trainable) + without


def listed(names: Iterable[str], most: int = 6) -> str:
    shown = list(names)
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return (", ".join(shown[:most]) or "none") + more
