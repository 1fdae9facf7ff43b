"""The recorder: it looks at a session every so many steps."""

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
import torch.distributed as dist

from regplug.backend import shards
from regplug.backend.blocks import batches
from regplug.backend.sums import Sum, resolve, wide
from regplug.errors import SelectionError, SpecError
from regplug.kernels.pieces import HALVES
from regplug.report.growing import GrowingTable
from regplug.selection.coverage import Covered
from regplug.selection.in_use import in_use
from regplug.selection.where import Selection
from regplug.session.session import Session

__all__ = ["Histogram", "LayerRow", "Recorder"]

# Where ``every`` is left open, rows are thinned out beyond this many.
_MOST = 128


@dataclass(frozen=True)
class LayerRow:
    """One parameter at one step: how many of its weights are exactly 0, and its 2-norm."""

    step: int
    layer: str
    weights: int
    zeros: int
    norm: float


@dataclass(frozen=True)
class Histogram:
    """Counts of weights in equal bins over ``[-limit, limit]``; the outer ones hold all beyond.

    Attributes:
        step: when it was taken.
        limit: where the bins end.
        counts: the number of weights in each.
    """

    step: int
    limit: float
    counts: list[int]


class Recorder:
    """Writes down what a session does, every so many steps.

    A recorded step costs two or three passes over the covered weights, any other step a
    comparison. Under sharding the numbers are those of the whole model, so every rank makes a
    recorder; only the first one writes.

    Args:
        session: an attached session.
        every: record each that many real steps. None records every step at first, and doubles
            the distance whenever there are too many rows to see: never more than 128, whatever
            the length of the run.
        folder: where the tables grow during the run, so that they outlive a crash; it is made if
            it is not there. A folder that fails (a full disk) does not end the training: what is
            lost is warned of once, and ``missing`` says it.
        to: where each row goes as well: a TensorBoard ``SummaryWriter`` (anything with
            ``add_scalar(name, value, step)``), an ``accelerate.Accelerator`` or one of its
            trackers (anything with ``log(values, step=…)``). A list of them, or one.
        warn: whether what can't be written is warned of. Whoever tells what is in ``missing``
            says False.

    Attributes:
        rows: a mapping for each recorded step: ``step``, the session's metrics, and what was noted.
        layers: a row for each covered parameter at each of these steps.
        before: the histogram of the covered weights when the recorder was made.
        after: that of the end, once :meth:`write` was called.
        missing: what could not be written, and why.

    Raises:
        SpecError: ``every`` is no whole number above 0, or ``to`` can't take rows.
    """

    def __init__(
        self,
        session: Session,
        every: int | None = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        to: Any = (),
        warn: bool = True,
    ) -> None:
        if every is not None and (isinstance(every, bool) or not isinstance(every, int)):
            raise SpecError(f"every must be a whole number of steps, got {every!r}")
        if every is not None and every < 1:
            raise SpecError(f"every must be at least 1, got {every!r}")
        self.session = session
        self.rows: list[dict[str, float]] = []
        self.layers: list[LayerRow] = []
        self.missing: list[str] = []
        self._sinks = list(to) if isinstance(to, list | tuple) else [to]
        for sink in self._sinks:
            if not (hasattr(sink, "add_scalar") or hasattr(sink, "log")):
                raise SpecError(
                    "to= takes TensorBoard writers, Accelerators and trackers, got "
                    f"{type(sink).__name__}"
                )
        self._every, self._thin = every or 1, every is None
        self._noted: dict[str, Any] = {}
        self._broken: set[str] = set()
        self._folder = None if folder is None else Path(folder)
        self._process = os.getpid()
        self._warn = warn
        self._streamed: dict[str, GrowingTable] = {}
        entries = self._entries()
        self._limit = _limit(entries)
        self.before = self._histogram(entries)
        self.after: Histogram | None = None
        self.record()
        self._undo = session.after_each_step(self._stepped)

    def _stepped(self, session: Session) -> None:
        if session.steps % self._every == 0:
            self.record()

    def note(self, **values: Any) -> None:
        """Remember numbers of the loop's own for the next rows, such as ``loss=loss``.

        Tensors are kept as they are and read only when a row is recorded. The columns may come at
        any time: they are empty in the rows before.

        Raises:
            SpecError: a value is no single number, or the name is that of a column already.
        """
        for name, value in values.items():
            if name == "step" or name in self._figures:
                whose = "recorder" if name == "step" else "session"
                raise SpecError(f"{name} is the {whose}'s own: note it under another name")
            if not _is_number(value):
                raise SpecError(f"{name}={value!r} is no single number: reduce it first")
            self._noted[name] = value.detach() if isinstance(value, torch.Tensor) else value

    def record(self) -> None:
        """Record the present step, if it is not recorded yet. Called by itself ``every`` steps."""
        session = self.session
        if self.rows and self.rows[-1]["step"] == session.steps:
            return
        row = {"step": session.steps, **session.figures()}
        self._figures = row.keys() - {"step"}
        row.update({name: float(value) for name, value in self._noted.items()})
        layers = self._layer_rows()
        self.rows.append(row)
        self.layers += layers
        self._send(row)
        if self._folder is not None:
            self._stream(f"{self.stem}.csv", [row])
            self._stream(f"{self.stem}.layers.csv", [asdict(layer) for layer in layers])
        if self._thin and len(self.rows) > _MOST:
            self._every *= 2
            kept = {row["step"] for row in self.rows if row["step"] % self._every == 0}
            self.rows = [row for row in self.rows if row["step"] in kept]
            self.layers = [layer for layer in self.layers if layer.step in kept]

    def close(self) -> None:
        """Record no more. The rows stay."""
        self._undo()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- what is measured ------------------------------------------------------------------

    def _entries(self) -> list[Covered]:
        for where in ("weights", "all"):
            try:
                return in_use(self.session.coverage(Selection(where))).trainable
            except SelectionError:
                continue
        return []

    def _layer_rows(self) -> list[LayerRow]:
        entries = self._entries()
        sums = []
        with torch.no_grad():
            for entry in entries:
                w = shards.local(entry.parameter)
                zeros = w.numel() - torch.count_nonzero(w)
                square = wide(torch.linalg.vector_norm(w, dtype=_wide(w))).square()
                sums += [
                    Sum([(entry.parameter, zeros)]),
                    Sum([(entry.parameter, square)]),
                ]
        totals = resolve(sums)
        return [
            LayerRow(
                self.session.steps, entry.name, entry.parameter.numel(), round(zeros), square**0.5
            )
            for entry, zeros, square in zip(entries, totals[::2], totals[1::2], strict=True)
        ]

    def _histogram(self, entries: Sequence[Covered]) -> Histogram:
        by_layout: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
        with torch.no_grad():
            for entry in entries:
                w: Any = entry.parameter
                # One sum for all that is sharded alike.
                key = (w.device_mesh, w.placements) if shards.is_dtensor(w) else None
                none = torch.zeros(_BINS, dtype=torch.float64, device="cpu")
                _, counts = by_layout.setdefault(key, (w, none))
                for ((piece,),) in batches([[shards.local(w)]]):
                    clamped = piece.float().clamp(-self._limit, self._limit)
                    counts += torch.histc(clamped, _BINS, -self._limit, self._limit).cpu()
        numbers = [(w, counts.tolist()) for w, counts in by_layout.values()]
        sums = [Sum((w, own[place]) for w, own in numbers) for place in range(_BINS)]
        totals = [round(total) for total in resolve(sums)]
        return Histogram(self.session.steps, self._limit, totals)

    # --- where it goes ---------------------------------------------------------------------

    @property
    def stem(self) -> str:
        """The name of the files, without their endings."""
        return quote(self.session.name, safe=" +-.")

    def _writes(self) -> bool:
        first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
        return first and os.environ.get("RANK", "0") == "0" and os.getpid() == self._process

    def _send(self, row: Mapping[str, float]) -> None:
        values = {f"{self.session.name}/{name}": v for name, v in row.items() if name != "step"}
        for sink in self._sinks:
            # An Accelerator is asked on all ranks, and sees to the first by itself.
            if not self._writes() and not hasattr(sink, "is_main_process"):
                continue
            try:
                if hasattr(sink, "add_scalar"):
                    for name, value in values.items():
                        sink.add_scalar(name, value, int(row["step"]))
                else:
                    sink.log(values, step=int(row["step"]))
            except OSError as error:
                self._miss(type(sink).__name__, error)

    def _stream(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        assert self._folder is not None
        if not self._writes() or name in self._broken or not rows:
            return
        grown = self._streamed.setdefault(name, GrowingTable(self._folder / name))
        try:
            for what, why in grown.add(rows):
                self._miss(f"{name}{what}", why)
        except OSError as error:
            self._broken.add(name)
            self._miss(f"{name} from step {self.session.steps} on", error)

    def _miss(self, what: str, error: object) -> None:
        reason = getattr(error, "strerror", None) or str(error)
        line = f"{what} ({reason})"
        if line not in self.missing:
            self.missing.append(line)
            if self._warn:
                warnings.warn(f"missing in the record of {self.session.name}: {line}", stacklevel=2)

    def write(self, folder: str | os.PathLike[str] | None = None) -> list[Path]:
        """Write tables and picture, and return the paths that were written.

        Call it on all ranks of a sharded model. What can't be written is warned of and named in
        ``missing`` instead of raised.

        Args:
            folder: where to; None for that of the constructor.

        Raises:
            SpecError: there is no folder.
        """
        where = self._folder if folder is None else Path(folder)
        if where is None:
            raise SpecError("folder is not known: Recorder(session, folder=…) or write(folder)")
        self.refresh()
        if not self._writes():
            return []
        written = []
        files = {
            f"{self.stem}.csv": lambda path: _table(path, self.rows),
            f"{self.stem}.layers.csv": lambda path: _table(path, [asdict(x) for x in self.layers]),
            f"{self.stem}.png": self._picture,
            f"{self.stem}.json": self._json,
        }
        for name, make in files.items():
            path = where / name
            if where == self._folder and name in self._streamed:
                # It holds more rows than are kept here, if it was not cut short.
                written += [path] * (name not in self._broken)
                continue
            try:
                where.mkdir(parents=True, exist_ok=True)
                make(path)
                written.append(path)
            except OSError as error:
                self._miss(name, error)
            except ImportError:
                self._miss(name, "no picture without matplotlib: regplug[plots]")
        return written

    def refresh(self) -> None:
        """Bring the last row and the histogram up to the present step."""
        if self.after is None or self.after.step != self.session.steps:
            self.record()
            self.after = self._histogram(self._entries())

    def _json(self, path: Path) -> None:
        session = self.session
        content = {
            "session": session.name,
            "model": type(session.model).__name__,
            "optimizer": type(session.optimizer).__name__ if session.optimizer else None,
            "plugins": [
                {"name": p.name, "source": p.source, "acts": p.acts(session)}
                for p in session.plugins
            ],
            "steps": session.steps,
            "rows": self.rows,
            "layers": [asdict(layer) for layer in self.layers],
            "before": asdict(self.before),
            "after": asdict(self.after) if self.after else None,
            "missing": self.missing,
        }
        text = json.dumps(_plain(content), indent=1, allow_nan=False)
        path.write_text(f"{text}\n", encoding="utf-8")

    def _picture(self, path: Path) -> None:
        from regplug.report.pictures import draw

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a missing glyph is no matter of the program's
            draw(self, path)


_BINS = 641
# In units of the root mean square when the recorder was made; an odd number of bins has one for 0.
_SPREAD = 16.0


def _wide(w: torch.Tensor) -> torch.dtype:
    return torch.float32 if w.dtype in HALVES else w.dtype


def _limit(entries: Sequence[Covered]) -> float:
    squares = []
    with torch.no_grad():
        for entry in entries:
            w = shards.local(entry.parameter)
            norm = torch.linalg.vector_norm(w, dtype=_wide(w))
            squares.append((entry.parameter, wide(norm).square()))
    if not squares:
        return 1.0
    weights = sum(entry.parameter.numel() for entry in entries)
    mean = resolve([Sum(squares, factor=1 / max(weights, 1))])[0]
    return _SPREAD * mean**0.5 if 0 < mean < float("inf") else 1.0


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not value.is_complex()
    try:
        return not isinstance(value, str | bytes) and float(value) is not None
    except (TypeError, ValueError):
        return False


def _plain(value: Any) -> Any:
    """Return ``value`` with None for the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    GrowingTable(path).add(rows)
