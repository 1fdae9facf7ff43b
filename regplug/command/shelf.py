"""What is on the shelf: every installed plugin with its arguments, broken ones with their error."""

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from textwrap import wrap
from typing import Any

from regplug.discovery.arguments import signature
from regplug.discovery.catalog import load_class
from regplug.errors import RegplugError
from regplug.installed import offers
from regplug.penalty import Penalty
from regplug.plugin import Plugin

__all__ = ["Entry", "as_json", "as_table", "shelf"]

_WIDTH = 100


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
            for parameter in signature(cls).parameters.values()
        ],
        deliveries=[] if penalty is None else _deliveries(penalty),
        separable=None if penalty is None else bool(penalty.separable),
    )


def _summary(cls: type[Plugin]) -> str:
    # Not inspect.getdoc, which would show the base class's where there is none.
    lines = inspect.cleandoc(cls.__doc__ or "").splitlines()
    return lines[0] if lines else ""


def _deliveries(cls: type[Penalty]) -> list[str]:
    has_operator = cls.proximal is not Penalty.proximal
    return ["loss", "step", *(["proximal"] if has_operator else [])]


def as_json(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the entries as plain lists and dicts."""
    return [asdict(entry) for entry in entries]


def as_table(entries: Sequence[Entry]) -> str:
    """Return the entries as a table of 100 columns, with the errors of the broken ones under it."""
    heads = [["plugin"], ["from"], ["what it does, its arguments, deliveries"]]
    rows = [_cells(entry) for entry in entries]
    left = [max(len(line) for cells in [heads, *rows] for line in cells[k]) for k in (0, 1)]
    widths = [*left, _WIDTH - sum(left) - 4]
    lines = [*_lines(heads, widths), "  ".join("-" * width for width in widths)]
    for cells in rows:
        lines += _lines(cells, widths)
    broken = dict.fromkeys(f"{entry.name}: {entry.error}" for entry in entries if entry.error)
    for error in broken:
        # Paths and names stay whole, to be copied.
        lines += wrap(
            error, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    return "\n".join(lines)


def _cells(entry: Entry) -> list[list[str]]:
    """Return name, origin and paragraphs of an entry, the first two cut into lines."""
    source = f"{entry.distribution} {entry.version}".strip()
    texts = ["broken: see below"]
    if not entry.error:
        separable = {True: "; separable", False: "; not separable", None: ""}[entry.separable]
        deliveries = ", ".join(entry.deliveries) + separable
        texts = [entry.summary, f"{entry.name}({_signature(entry.arguments)})", deliveries]
    return [wrap(entry.name, 24), wrap(source, 26), [text for text in texts if text]]


def _lines(cells: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    names, sources, paragraphs = cells
    texts = [line for text in paragraphs for line in wrap(text, widths[2], subsequent_indent="  ")]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in zip_longest(names, sources, texts, fillvalue="")
    ]


def _signature(arguments: Sequence[dict[str, Any]]) -> str:
    shown: list[str] = []
    star = False
    for argument in arguments:
        stars = {"variadic positional": "*", "variadic keyword": "**"}.get(argument["kind"], "")
        default = "" if argument["default"] is None else f"={argument['default']}"
        if argument["kind"] == "keyword-only" and not star:
            shown.append("*")
        star = star or argument["kind"] in ("keyword-only", "variadic positional")
        shown.append(f"{stars}{argument['name']}{default}")
    return ", ".join(shown)
