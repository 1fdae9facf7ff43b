"""The files of a record: tables that grow during the run, and at its end JSON and picture."""

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch.distributed as dist

from regplug.report.growing import GrowingTable
from regplug.report.measures import LayerRow, Record
from regplug.view import SessionView

__all__ = ["Files"]


class Files:
    """The files of one session's record, which one process alone writes.

    Args:
        session: whose record it is.
        folder: where the tables grow during the run, if they do.
        warn: whether what can't be written is warned of.

    Attributes:
        folder: as given.
        missing: what could not be written, and why.
    """

    def __init__(self, session: SessionView, folder: Path | None, *, warn: bool) -> None:
        self.folder = folder
        self.missing: list[str] = []
        self._session = session
        self._broken: set[str] = set()
        self._process = os.getpid()
        self._warn = warn
        self._streamed: dict[str, GrowingTable] = {}

    @property
    def stem(self) -> str:
        """The name of the files, without their endings."""
        return quote(self._session.name, safe=" +-.")

    def writes(self) -> bool:
        """Whether this process is the one that writes."""
        first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
        return first and os.environ.get("RANK", "0") == "0" and os.getpid() == self._process

    def grow(self, row: Mapping[str, float], layers: Sequence[LayerRow]) -> None:
        """Append a step to the tables, if they grow during the run."""
        if self.folder is None:
            return
        self._stream(f"{self.stem}.csv", self.folder, [row])
        self._stream(f"{self.stem}.layers.csv", self.folder, [asdict(layer) for layer in layers])

    def _stream(self, name: str, folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        if not self.writes() or name in self._broken or not rows:
            return
        grown = self._streamed.setdefault(name, GrowingTable(folder / name))
        try:
            for what, why in grown.add(rows):
                self.miss(f"{name}{what}", why)
        except OSError as error:
            self._broken.add(name)
            self.miss(f"{name} from step {self._session.steps} on", error)

    def miss(self, what: str, error: object) -> None:
        """Note that something could not be written, and warn of it once if that is wanted."""
        reason = getattr(error, "strerror", None) or str(error)
        line = f"{what} ({reason})"
        if line not in self.missing:
            self.missing.append(line)
            if self._warn:
                warnings.warn(
                    f"missing in the record of {self._session.name}: {line}", stacklevel=2
                )

    def write(self, where: Path, record: Record) -> list[Path]:
        """Write what does not stand in ``where`` already, and return the paths of all of it."""
        if not self.writes():
            return []
        written = []
        files: dict[str, Callable[[Path], object]] = {
            f"{self.stem}.csv": lambda path: GrowingTable(path).add(record.rows),
            f"{self.stem}.layers.csv": lambda path: GrowingTable(path).add(
                [asdict(x) for x in record.layers]
            ),
            f"{self.stem}.png": lambda path: _picture(path, record),
            f"{self.stem}.json": lambda path: _json(path, record),
        }
        for name, make in files.items():
            path = where / name
            if where == self.folder and name in self._streamed:
                # It holds more rows than are kept here, if it was not cut short.
                written += [path] * (name not in self._broken)
                continue
            try:
                where.mkdir(parents=True, exist_ok=True)
                make(path)
                written.append(path)
            except OSError as error:
                self.miss(name, error)
            except ImportError:
                self.miss(name, "no picture without matplotlib: regplug[plots]")
        return written


def _json(path: Path, record: Record) -> None:
    session = record.session
    content = {
        "session": session.name,
        "model": type(session.model).__name__,
        "optimizer": type(session.optimizer).__name__ if session.optimizer else None,
        "plugins": [
            {"name": p.name, "source": p.source, "acts": p.acts(session)} for p in session.plugins
        ],
        "steps": session.steps,
        "rows": record.rows,
        "layers": [asdict(layer) for layer in record.layers],
        "before": asdict(record.before),
        "after": asdict(record.after) if record.after else None,
        "missing": record.missing,
    }
    text = json.dumps(_plain(content), indent=1, allow_nan=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def _picture(path: Path, record: Record) -> None:
    from regplug.report.pictures import draw

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a missing glyph is no matter of the program's
        draw(record, path)


def _plain(value: Any) -> Any:
    """Return ``value`` with None for the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
