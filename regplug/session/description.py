"""What a session says of itself: the table of its plugins."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from regplug.plugin import Plugin
from regplug.table import html_table, table
from regplug.view import SessionView

__all__ = ["Description", "described"]

_HEADS = ["plugin", "from", "acts", "tensors", "weights", "strength now"]


@dataclass(frozen=True)
class Description:
    """A title, a row for each plugin, and what there is to note; its ``str`` is all of it."""

    title: str
    rows: list[list[str]]
    notes: list[str]

    def __str__(self) -> str:
        return "\n".join([self.title, table(_HEADS, self.rows), *self.notes])

    @property
    def html(self) -> str:
        """The same for notebooks."""
        notes = "".join(f"<div>{escape(note)}</div>" for note in self.notes)
        return f"<div>{escape(self.title)}</div>{html_table(_HEADS, self.rows)}{notes}"


def described(
    session: SessionView, plugins: Iterable[Plugin], *, detached: bool, notes: Sequence[str]
) -> Description:
    """Return what there is to say of a session, the rows in the order of ``plugins``."""
    rows: list[list[str]] = []
    noted: dict[str, list[str]] = {}
    for plugin in plugins:
        covered = plugin.covers(session)
        mapped = plugin.mappings
        strengths = (
            ("" if key in ("strength", "rate") else f"{key} ")
            + (f"up to {value:g}" if key in mapped else f"{value:g}")
            for key, value in plugin.strengths().items()
        )
        rows.append(
            [
                plugin.name,
                plugin.source,
                plugin.acts(session),
                *(("–", "–") if covered is None else (f"{n:,}" for n in covered)),
                ", ".join(strengths),
            ]
        )
        for note in plugin.notes(session):
            noted.setdefault(note, []).append(plugin.name)
    where = type(session.model).__name__
    by = type(session.optimizer).__name__ if session.optimizer is not None else "no optimizer"
    state = ", detached" if detached else ""
    title = f"{session.name}: {where} with {by}, {session.steps} steps{state}"
    lines = [f"{', '.join(names)}: {note}" for note, names in noted.items()]
    return Description(title, rows, [*lines, *notes])
