"""The recorder: it looks at a session every so many steps."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from regplug.errors import SpecError
from regplug.report.files import Files
from regplug.report.measures import Histogram, LayerRow, covered, extent, histogram, layer_rows
from regplug.session.session import Session

__all__ = ["Recorder"]

# Where ``every`` is left open, rows are thinned out beyond this many.
_MOST = 128


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
        self._sinks = list(to) if isinstance(to, list | tuple) else [to]
        for sink in self._sinks:
            if not (hasattr(sink, "add_scalar") or hasattr(sink, "log")):
                raise SpecError(
                    "to= takes TensorBoard writers, Accelerators and trackers, got "
                    f"{type(sink).__name__}"
                )
        self._every, self._thin = every or 1, every is None
        self._noted: dict[str, Any] = {}
        self._files = Files(session, None if folder is None else Path(folder), warn=warn)
        self.missing = self._files.missing
        entries = covered(session)
        self._limit = extent(entries)
        self.before = histogram(session, entries, self._limit)
        self.after: Histogram | None = None
        self.record()
        self._undo = session.after_each_step(self._stepped)
        self._undo_notes = session.after_each_note(self._heard)

    def _stepped(self, session: Session) -> None:
        if session.steps % self._every == 0:
            self.record()

    def _heard(self, values: Mapping[str, Any]) -> None:
        """Remember what ``session.note`` was told, as far as it is single numbers."""
        self.note(**{name: value for name, value in values.items() if _is_number(value)})

    def note(self, **values: Any) -> None:
        """Remember numbers of the loop's own for the next rows, such as ``loss=loss``.

        ``session.note`` does that too, and tells the plugins.

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
        layers = layer_rows(session)
        self.rows.append(row)
        self.layers += layers
        self._send(row)
        self._files.grow(row, layers)
        if self._thin and len(self.rows) > _MOST:
            self._every *= 2
            kept = {row["step"] for row in self.rows if row["step"] % self._every == 0}
            self.rows = [row for row in self.rows if row["step"] in kept]
            self.layers = [layer for layer in self.layers if layer.step in kept]

    def close(self) -> None:
        """Record no more. The rows stay."""
        self._undo()
        self._undo_notes()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- where it goes ---------------------------------------------------------------------

    @property
    def stem(self) -> str:
        """The name of the files, without their endings."""
        return self._files.stem

    def _send(self, row: Mapping[str, float]) -> None:
        values = {f"{self.session.name}/{name}": v for name, v in row.items() if name != "step"}
        for sink in self._sinks:
            # An Accelerator is asked on all ranks, and sees to the first by itself.
            if not self._files.writes() and not hasattr(sink, "is_main_process"):
                continue
            try:
                if hasattr(sink, "add_scalar"):
                    for name, value in values.items():
                        sink.add_scalar(name, value, int(row["step"]))
                else:
                    sink.log(values, step=int(row["step"]))
            except OSError as error:
                self._files.miss(type(sink).__name__, error)

    def write(self, folder: str | os.PathLike[str] | None = None) -> list[Path]:
        """Write tables and picture, and return the paths that were written.

        Call it on all ranks of a sharded model. What can't be written is warned of and named in
        ``missing`` instead of raised.

        Args:
            folder: where to; None for that of the constructor.

        Raises:
            SpecError: there is no folder.
        """
        where = self._files.folder if folder is None else Path(folder)
        if where is None:
            raise SpecError("folder is not known: Recorder(session, folder=…) or write(folder)")
        self.refresh()
        return self._files.write(where, self)

    def refresh(self) -> None:
        """Bring the last row and the histogram up to the present step."""
        if self.after is None or self.after.step != self.session.steps:
            self.record()
            self.after = histogram(self.session, covered(self.session), self._limit)


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not value.is_complex()
    try:
        return not isinstance(value, str | bytes) and float(value) is not None
    except (TypeError, ValueError):
        return False
