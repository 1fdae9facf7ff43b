"""What comes of a run: printed on stderr at its end, and written to the report's folder."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from regplug.errors import RegplugError
from regplug.table import table

if TYPE_CHECKING:
    from regplug.command.run.attaching import Watch
    from regplug.report.recorder import Recorder
    from regplug.session.session import Session

__all__ = ["Outcome", "Wishes", "rank"]


@dataclass(frozen=True)
class Wishes:
    """What command line and configuration ask for."""

    plugins: list[str]
    report: Path | None
    every: int | None


def rank() -> int:
    """Return the rank of this process, as torch or the launcher says."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0"))


class Outcome:
    """What is printed at the end, and written to the report's folder."""

    def __init__(self, wishes: Wishes) -> None:
        self.wishes = wishes
        self.clean = True
        # Held by their sessions, and by nobody once those are gone.
        self.recorders: WeakValueDictionary[str, Recorder] = WeakValueDictionary()
        self.missing: list[str] = []
        self.rank = rank()
        self.reported = False

    def attached(self, session: "Session") -> None:
        self.rank = rank()
        if self.wishes.report is not None:
            from regplug.report.recorder import Recorder

            recorder = Recorder(session, self.wishes.every, folder=self.wishes.report, warn=False)
            self.recorders[session.name] = recorder
            self.reported = True

    def look(self, session: "Session") -> str:
        """Return the session's table, with value and zeros as they are now."""
        metrics, note = self._metrics(session)
        recorder = self.recorders.get(session.name)
        if recorder is not None and note is None:
            recorder.write()
            self.missing += [m for m in recorder.missing if m not in self.missing]
        rows = []
        for plugin in session.plugins:
            covered = plugin.covers(session)
            strengths = [
                f"{value:g}" if key in ("strength", "rate") else f"{key} {value:g}"
                for key, value in plugin.strengths().items()
            ]
            value = metrics.get(f"{plugin.name}/value")
            zeros = metrics.get(f"{plugin.name}/zeros")
            rows.append(
                [
                    plugin.name,
                    plugin.acts(session),
                    *(("–", "–") if covered is None else (f"{n:,}" for n in covered)),
                    ", ".join(strengths) or "–",
                    "–" if value is None else f"{value:.4g}",
                    "–" if zeros is None else f"{100 * zeros:.1f} %",
                ]
            )
        heads = ["plugin", "acts", "tensors", "weights", "strength", "value", "zeros"]
        notes = [f"{p.name}: {line}" for p in session.plugins for line in p.notes(session)]
        return "\n".join([table(heads, rows), *notes, *([note] if note else [])])

    def _metrics(self, session: "Session") -> tuple[dict[str, float], str | None]:
        from regplug.session.accelerate import is_sharded

        if is_sharded(session):
            # Values of a sharded model take all ranks, and a way to reach them.
            import torch.distributed as dist

            if not dist.is_initialized():
                return {}, "value and zeros are spread over ranks that the script parted before"
            if not self.clean:
                return {}, "value and zeros are spread over ranks that may not be there any more"
        try:
            return session.figures(), None
        except RegplugError as error:
            return {}, f"value and zeros are not known: {error}"

    def end(self, watch: "Watch", *, clean: bool) -> None:
        """Look at every session for the last time. ``clean`` if all ranks came to the end."""
        self.clean = clean
        for entry in watch.entries:
            entry.settle()

    def tell(self, watch: "Watch") -> None:
        """Print what was attached where, and what came of it."""
        if self.rank != 0:
            return
        sys.stdout.flush()
        lines = [line for entry in watch.entries[:_SHOWN] for line in _lines_of(entry)]
        if len(watch.entries) > _SHOWN:
            steps = sum(entry.steps for entry in watch.entries[_SHOWN:])
            lines.append(f"… and {len(watch.entries) - _SHOWN} more sessions, {steps:,} steps")
        lines += [f"no plugin was for {name}" for name in dict.fromkeys(watch.alone)]
        lines += [f"{what}, and was passed over there" for what in dict.fromkeys(watch.passed)]
        # A script that died on its way has its traceback to read, and no advice to look through.
        if self.clean:
            lines += [
                f"{order.spec} was for no model: {order.scope!r} matches none of their names"
                for order in watch.orders
                if order in watch.unmatched
            ]
            if not any(entry.steps for entry in watch.entries):
                lines.append(_NEVER)
        if self.reported:
            lines.append(f"report: {self.wishes.report}{os.sep}")
        lines += [f"missing in the report: {what}" for what in self.missing]
        for line in lines:
            print(f"regplug run: {line}", file=sys.stderr)


_SHOWN = 8
_NEVER = (
    "no optimizer of torch took a step with a plugin in this process, so nothing was regularized. "
    "A loop that updates weights by hand attaches by hand (with session.step():), one in processes "
    "that the script starts itself is started by torchrun instead"
)


def _lines_of(entry: Any) -> list[str]:
    lines = [f"{entry.name}: {entry.title}, {entry.steps:,} real steps"]
    lines += [] if entry.final is None else [f"  {line}" for line in entry.final.splitlines()]
    return lines
