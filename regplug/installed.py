"""What is installed: the entry points of group ``regplug`` and the distributions behind them.

Nothing is loaded here. Offers are read once and kept for as long as the environment looks the same:
a distribution comes and goes by an entry of its folder, which the folder's time tells of.
"""

import importlib
import importlib.metadata
import os
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["FILES", "GROUP", "Offer", "distribution_of", "entry_name_of", "offers"]

GROUP = "regplug"

_ENDINGS = (".dist-info", ".egg-info", ".egg")
# File systems tell times in ticks: a folder that changed this shortly ago may change once more
# without a trace.
_TICK_NS = 100_000_000


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


_kept: dict[str, Any] = {"environment": None, "offers": ()}
_listed: dict[Any, tuple[Any, Any]] = {}


def offers(*, anew: bool = False) -> tuple[Offer, ...]:
    """Return every installed entry point of the group, sorted, each once.

    Files are listed in another order on each machine, and a checkout that is installed for
    development shows up twice when its folder is on ``sys.path`` too: neither may matter.

    Args:
        anew: read them even if nothing seems to have changed. Whoever misses something asks so,
            for a file may be edited in its place.
    """
    environment = ([_held(path) for path in sys.path], list(sys.meta_path))
    if anew or _kept["environment"] != environment:
        if anew:
            importlib.invalidate_caches()
        _kept.update(environment=environment, offers=_read())
    found: tuple[Offer, ...] = _kept["offers"]
    return found


def _held(path: Any) -> Any:
    """Return what differs once a distribution came to this place of ``sys.path``, or left it."""
    try:
        # A path of sys.path may be of any kind, and is the working directory if it is empty.
        now = os.stat(path or ".")  # noqa: PTH116
        state = (now.st_dev, now.st_ino, now.st_mtime_ns)
        known = _listed.get(path)
        if known is not None and known[0] == state:
            return known[1]
        # Scripts write their files there too, which is no reason to read everything anew.
        with os.scandir(path or ".") as entries:
            found = [entry for entry in entries if entry.name.endswith(_ENDINGS)]
        held = [path, *sorted((entry.name, entry.stat().st_mtime_ns) for entry in found)]
    except NotADirectoryError:
        return state  # a zip file
    except (OSError, ValueError, TypeError):
        return path
    if now.st_mtime_ns < time.time_ns() - _TICK_NS:
        _listed[path] = (state, held)
    return held


def _read() -> tuple[Offer, ...]:
    found: dict[tuple[str, str, str], Offer] = {}
    # Each name and each version parses the whole metadata file, a long README included.
    known: dict[int, tuple[str, str]] = {}
    for entry_point in importlib.metadata.entry_points(group=GROUP):
        dist = entry_point.dist
        if id(dist) not in known:
            metadata = dist.metadata if dist else None
            known[id(dist)] = (
                ("unknown distribution", "")
                if metadata is None
                else (metadata["Name"] or "unknown distribution", metadata["Version"] or "")
            )
        offer = Offer(entry_point.name, entry_point.value, *known[id(dist)], entry_point)
        found.setdefault((offer.name, offer.value, offer.distribution), offer)
    return tuple(found[key] for key in sorted(found))


FILES: dict[str, tuple[str, str]] = {}
"""The files that specs named, by the module that each is here: its name, and a digest of it."""


_entry_names: WeakKeyDictionary[type, str | None] = WeakKeyDictionary()


def entry_name_of(cls: type) -> str | None:
    """Return the entry-point name under which ``cls`` is installed, or None."""
    if cls not in _entry_names:
        _entry_names[cls] = next((offer.name for offer in offers() if offer.is_of(cls)), None)
    return _entry_names[cls]


def distribution_of(cls: type) -> tuple[str, str]:
    """Return name and version of the distribution that offers ``cls``.

    A class that no entry point names belongs to the distribution of its top-level package, or to
    none: then its module is returned, with an empty version. One of a single file belongs to
    that, and its version is a digest, so that ranks and reports tell one state from another.
    """
    if cls.__module__ in FILES:
        return FILES[cls.__module__]
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
