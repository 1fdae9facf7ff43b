"""What is on the shelf: every installed plugin with its arguments, broken ones with their error."""

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from regplug.catalog import load_class
from regplug.distributions import offers
from regplug.errors import RegplugError
from regplug.penalty import Penalty
from regplug.plugin import Plugin
from regplug.table import table

__all__ = ["Entry", "as_json", "as_table", "shelf"]


@dataclass(frozen=True)
class Entry:
    """One entry point: what it offers, or the error that it gives.

    Attributes:
        name: the plugin's name, as in a spec.
        distribution: who installed it.
        version: of the distribution.
        target: where the class is, ``"module:Class"``.
        summary: the first line of the class's docstring.
        arguments: of the constructor, in order: ``name``, ``kind`` (as Python calls it),
            ``required``, and ``default`` as Python writes it, or None.
        deliveries: of a penalty; empty for other plugins.
        separable: whether a penalty acts element by element; None for other plugins.
        error: why it can't be used, or None.
    """

    name: str
    distribution: str
    version: str
    target: str
    summary: str = ""
    arguments: list[dict[str, Any]] = field(default_factory=list)
    deliveries: list[str] = field(default_factory=list)
    separable: bool | None = None
    error: str | None = None


def shelf() -> list[Entry]:
    """Return every installed plugin, sorted by name; one that is broken disturbs no other."""
    entries = []
    for offer in offers():
        origin = (offer.name, offer.distribution, offer.version, offer.value)
        try:
            entries.append(_entry(origin, load_class(offer.name)))
        except RegplugError as error:
            entries.append(Entry(*origin, error=str(error)))
    return entries


def _entry(origin: tuple[str, str, str, str], cls: type[Plugin]) -> Entry:
    penalty = cls if issubclass(cls, Penalty) else None
    return Entry(
        *origin,
        summary=_summary(cls),
        arguments=[
            {
                "name": parameter.name,
                "kind": parameter.kind.description,
                "required": parameter.default is parameter.empty
                and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD),
                "default": None
                if parameter.default is parameter.empty
                else repr(parameter.default),
            }
            for parameter in inspect.signature(cls).parameters.values()
        ],
        deliveries=[] if penalty is None else _deliveries(penalty),
        separable=None if penalty is None else bool(penalty.separable),
    )


def _summary(cls: type[Plugin]) -> str:
    # Not inspect.getdoc, which would show the base class's where there is none.
    lines = inspect.cleandoc(cls.__doc__ or "").splitlines()
    return lines[0] if lines else ""


def _deliveries(cls: type[Penalty]) -> list[str]:
    has_proximal = cls.proximal is not Penalty.proximal
    return ["loss", "step", *(["proximal"] if has_proximal else [])]


def as_json(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the entries as plain lists and dicts."""
    return [asdict(entry) for entry in entries]


def as_table(entries: Sequence[Entry]) -> str:
    """Return the entries as a table, with the errors of the broken ones under it."""
    heads = ["plugin", "summary", "from", "arguments", "deliveries", "separable"]
    separable = {True: "yes", False: "no", None: "–"}
    rows = [
        [
            entry.name,
            "broken: see below" if entry.error else entry.summary,
            f"{entry.distribution} {entry.version}".strip(),
            _signature(entry.arguments),
            ", ".join(entry.deliveries) or "–",
            separable[entry.separable],
        ]
        for entry in entries
    ]
    broken = dict.fromkeys(f"{entry.name}: {entry.error}" for entry in entries if entry.error)
    return "\n".join([table(heads, rows), *broken])


def _signature(arguments: Sequence[dict[str, Any]]) -> str:
    shown: list[str] = []
    for argument in arguments:
        stars = {"variadic positional": "*", "variadic keyword": "**"}.get(argument["kind"], "")
        default = "" if argument["default"] is None else f"={argument['default']}"
        if argument["kind"] == "keyword-only" and "*" not in "".join(shown):
            shown.append("*")
        shown.append(f"{stars}{argument['name']}{default}")
    return ", ".join(shown) or "–"
