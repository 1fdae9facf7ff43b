"""What is installed: the entry points of group ``regplug`` and the distributions behind them.

Nothing is loaded here. Offers are not kept: they are always those of the environment as it is.
"""

import importlib.metadata
import sys
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakKeyDictionary

__all__ = ["GROUP", "Offer", "distribution_of", "entry_name_of", "offers"]

GROUP = "regplug"


@dataclass(frozen=True)
class Offer:
    """One entry point: a plugin's name, where its class is, and who installed it."""

    name: str
    value: str
    distribution: str
    version: str
    entry_point: importlib.metadata.EntryPoint

    @property
    def source(self) -> str:
        """The distribution with its version, as messages show it."""
        return f"{self.distribution} {self.version}".strip()

    def is_of(self, cls: type) -> bool:
        """Tell whether this entry point names ``cls``, without importing anything."""
        module, _, attribute = self.value.partition(":")
        if (module, attribute) == (cls.__module__, cls.__qualname__):
            return True
        found: object = sys.modules.get(module)
        for part in attribute.split("."):
            found = getattr(found, part, None)
        return found is cls


def offers() -> list[Offer]:
    """Return every installed entry point of the group, sorted, each once.

    Files are listed in another order on each machine, and a checkout that is installed for
    development shows up twice when its folder is on ``sys.path`` too: neither may matter.
    """
    found: dict[tuple[str, str, str], Offer] = {}
    for entry_point in importlib.metadata.entry_points(group=GROUP):
        dist = entry_point.dist
        offer = Offer(
            entry_point.name,
            entry_point.value,
            dist.name if dist else "unknown distribution",
            dist.version if dist else "",
            entry_point,
        )
        found.setdefault((offer.name, offer.value, offer.distribution), offer)
    return [found[key] for key in sorted(found)]


_entry_names: WeakKeyDictionary[type, str | None] = WeakKeyDictionary()


def entry_name_of(cls: type) -> str | None:
    """Return the entry-point name under which ``cls`` is installed, or None."""
    if cls not in _entry_names:
        _entry_names[cls] = next((offer.name for offer in offers() if offer.is_of(cls)), None)
    return _entry_names[cls]


def distribution_of(cls: type) -> tuple[str, str]:
    """Return name and version of the distribution that offers ``cls``.

    A class that no entry point names belongs to the distribution of its top-level package, or to
    none: then its module is returned, with an empty version.
    """
    for offer in offers():
        if offer.is_of(cls):
            return offer.distribution, offer.version
    return _distribution_of_package(cls.__module__.partition(".")[0]) or (cls.__module__, "")


@lru_cache
def _distribution_of_package(package: str) -> tuple[str, str] | None:
    # Kept, for it reads the metadata of all that is installed, and errors want it again and again.
    for name in importlib.metadata.packages_distributions().get(package, ()):
        return name, importlib.metadata.version(name)
    return None
