"""Proximal operators of several penalties on one weight: in which order they are that of the sum.

One after another they are the operator of the sum in one order at most. Thresholds come first, then
norms of groups are shrunk, then weights are scaled down: prox of λ₁·Σ|w| + λ₂·Σw² is the soft
threshold divided by 1 + 2·step·λ₂, and not the soft threshold of a weight divided before.
"""

import warnings
from collections.abc import Sequence
from itertools import combinations

from regplug.bases.delivered import Delivered
from regplug.errors import UnsupportedError
from regplug.plugin import Plugin
from regplug.view import SessionView

__all__ = ["check", "in_order"]

_ORDER = ("threshold", "groups", "scale", "threshold and scale", "pull")
# What comes last, as only one can: the ones behind it would have to know of its scale.
_LAST = _ORDER[2:4]
# Right whatever steps the optimizer takes; the others in one step for all elements alone.
_ALWAYS = {("threshold", kind) for kind in _ORDER[:4]}
_FOR_ONE_STEP = {("groups", "groups"), ("groups", "scale")}


def in_order(plugins: Sequence[Plugin]) -> list[Plugin]:
    """Return ``plugins`` with the proximal penalties among them in the order in which they act.

    They change places among themselves; all others stay where they are.
    """
    places = [i for i, p in enumerate(plugins) if _kind(p) is not None]
    moved = sorted((plugins[i] for i in places), key=lambda p: _ORDER.index(_kind(p) or ""))
    found = list(plugins)
    for place, plugin in zip(places, moved, strict=True):
        found[place] = plugin
    return found


def _kind(plugin: Plugin) -> str | None:
    if not isinstance(plugin, Delivered) or plugin.delivery != "proximal":
        return None
    return plugin.composition if plugin.composition in _ORDER else None


def check(session: SessionView, *, again: bool = False) -> None:
    """Check that proximal operators on the same weights are, one after another, that of their sum.

    Warns of operators of which nothing is known, unless it is done ``again``.

    Raises:
        UnsupportedError: they are not, in any order; the message names the way out.
    """
    found = [p for p in session.plugins if isinstance(p, Delivered) and p.delivery == "proximal"]
    if len(found) < 2:
        return
    elementwise = session.update_rule().elementwise
    covered = {p: dict.fromkeys(p.covered(session)) for p in found}
    for one, other in combinations(found, 2):
        shared = [name for name in covered[one] if name in covered[other]]
        if not shared:
            continue
        names = ", ".join(shared[:3]) + ", …" * (len(shared) > 3)
        kinds = _kind(one), _kind(other)
        if None in kinds and "pull" not in kinds:
            if again:
                continue
            unknown = [p.name for p, kind in zip((one, other), kinds, strict=True) if kind is None]
            warnings.warn(
                f"{one.name} and {other.name} both have proximal operators on {names}: they act "
                "one after the other, in the order of the list, which need not be the operator of "
                f"their sum (what that of {' and '.join(unknown)} does is not known: its "
                "`composition` may say so)",
                stacklevel=2,
            )
        elif (way := _way_out(one, other, elementwise=elementwise)) is not None:
            raise UnsupportedError(
                f"{one.name} and {other.name} both have proximal operators on {names}, which one "
                f"after the other are not that of their sum under "
                f"{type(session.optimizer).__name__}: {way}"
            )


def _way_out(one: Delivered, other: Delivered, *, elementwise: bool) -> str | None:
    """Return what to do instead, or None if the two are right as they are."""
    first, second = sorted((str(_kind(p)) for p in (one, other)), key=_place)
    same = first != "groups" or second != "groups" or one.orientation == other.orientation
    if (first, second) in _ALWAYS:
        return None
    if (first, second) in _FOR_ONE_STEP and same and not elementwise:
        return None
    if (first, second) == ("groups", "threshold and scale"):
        return "write a penalty for each of its terms instead, or give one of them delivery='step'"
    if first in _LAST and second in _LAST:
        return "give one of them the sum of both"
    if first == second == "groups" and same:
        return "give one of them the sum of both"
    return "give one of them delivery='step'"


def _place(kind: str) -> int:
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)
