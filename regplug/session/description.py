"""What a session says of itself: the table of its plugins."""

from collections.abc import Iterable, Sequence

from regplug.plugin import Plugin
from regplug.table import table
from regplug.view import SessionView

__all__ = ["described"]

_HEADS = ["plugin", "from", "acts", "tensors", "weights", "strength now"]


def described(
    session: SessionView, plugins: Iterable[Plugin], *, detached: bool, notes: Sequence[str]
) -> str:
    """Return a title, a row for each plugin, and what there is to note."""
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
    return "\n".join([title, table(_HEADS, rows), *lines, *notes])
