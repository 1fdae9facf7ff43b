"""A table in a file that grows during a run: rows that are appended, columns that come later."""

import csv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["GrowingTable"]


class GrowingTable:
    """A CSV file that gets rows, and now and then a column. An old file of that name is replaced.

    Args:
        path: where it is made, with its folder, when the first rows come.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     grown = GrowingTable(Path(folder) / "out" / "rows.csv")
    ...     lost = [*grown.add([{"step": 0}]), *grown.add([{"step": 1, "loss": 0.5}])]
    ...     grown.path.read_text().split(), lost
    (['step,loss', '0,', '1,0.5'], [])
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []
        self._lost: set[str] = set()
        self._begun = False

    def add(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, object]]:
        """Append rows; a column that is new is empty in those before.

        Returns:
            What could not be kept, and why: the rows before, if somebody removed the file, or a
            column, if the file could not be written anew.

        Raises:
            OSError: the rows could not be written.
        """
        lost: list[tuple[str, object]] = []
        known = {*self._columns, *self._lost}
        new = [key for key in dict.fromkeys(k for row in rows for k in row) if key not in known]
        if not self._begun or not self.path.exists():
            if self._begun:
                lost.append((f" before step {rows[0]['step']}", "it was removed"))
            self._columns += new
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write(self.path, [], "w")
            self._begun = True
        elif new:
            try:
                self._rewrite([*self._columns, *new])
            except OSError as error:
                self._lost.update(new)
                plural = "s" if len(new) > 1 else ""
                lost.append((f": the column{plural} {', '.join(new)}", error))
        self._write(self.path, rows, "a")
        return lost

    def _write(self, path: Path, rows: Sequence[Mapping[str, Any]], mode: str) -> None:
        with path.open(mode, newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, self._columns, restval="", extrasaction="ignore")
            if mode == "w":
                writer.writeheader()
            writer.writerows(rows)

    def _rewrite(self, columns: list[str]) -> None:
        """Write the file anew beside itself, so that whatever happens one of the two is whole."""
        before = self._columns
        with self.path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        new = self.path.with_name(f".{self.path.name}.new")
        self._columns = columns
        try:
            self._write(new, rows, "w")
            new.replace(self.path.resolve())
        except BaseException:
            self._columns = before
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise
