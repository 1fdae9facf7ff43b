"""``regplug run``: a training script, unedited, with plugins attached to what it trains.

They are attached to each torch optimizer that the script makes, and act at its steps, so the
weights are those of a script that had attached them before its loop.

    regplug run -p 'l1(1e-4, delivery="proximal")' train.py --epochs 5
    regplug run -p 'weight_decay(0.1) @ netG' -p 'l2(1e-4) @ netD' --report out gan.py
    torchrun --nproc_per_node 2 -m regplug run -p 'l1(1e-4)' -m package.train

A pattern after @ says which models a plugin is for. It is compared with the names of the variables
that hold model and optimizer and with the names of their classes; the summary at the end shows
them. What can be known to be wrong before the script starts, or when a plugin is attached, ends it
with exit status 2 and one line.
"""

import argparse
import atexit
import os
import signal
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from regplug.command.run.config import read
from regplug.command.run.program import Script
from regplug.errors import PluginError, RegplugError, SpecError
from regplug.table import table

if TYPE_CHECKING:
    from regplug.command.run.watch import Watch
    from regplug.report.recorder import Recorder
    from regplug.session.session import Session

__all__ = ["add_parser", "main"]


def add_parser(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> argparse.ArgumentParser:
    """Add ``run`` to the subcommands of the ``regplug`` command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "run",
        help="run a script with plugins attached, without editing it",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_arguments(parser)
    parser.set_defaults(command=main)
    return parser


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-p",
        "--plugin",
        dest="plugins",
        action="append",
        default=[],
        metavar="SPEC[@PATTERN]",
        help="a plugin, for all models or those of the pattern; may be given several times",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a TOML file: plugins = ['SPEC[@PATTERN]', …], and report = 'FOLDER' if wanted",
    )
    parser.add_argument(
        "--report", metavar="FOLDER", help="write tables and a picture of each model there"
    )
    parser.add_argument(
        "--every",
        type=int,
        metavar="STEPS",
        help="how often the report looks (by default ever more rarely, 128 times at most)",
    )
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module's name")
    parser.add_argument("script", metavar="SCRIPT")
    parser.add_argument("args", nargs=argparse.REMAINDER, metavar="ARGS", help="the script's own")


@dataclass(frozen=True)
class _Wishes:
    """What command line and configuration ask for."""

    plugins: list[str]
    report: Path | None
    every: int | None


def main(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        The script's own exit status (or its ``SystemExit`` comes out), 2 if a plugin, an argument
        or an attachment is wrong.
    """
    # Imports torch, as the plugins do too: the script finds it imported already.
    from regplug.command.run.watch import Stop, Watch, checked

    try:
        wishes = _wishes(args)
        orders = checked(wishes.plugins)
        if wishes.report is not None and _rank() == 0:
            _check_folder(wishes.report)
        script = Script(args.script, is_module=args.module)
    except RegplugError as error:
        return _fail(error)
    outcome = _Outcome(wishes)
    atexit.register(outcome.end_as_python_does)  # first in, hence after all that the script has
    failure: BaseException | None = None
    status, clean = 0, False
    with Watch(orders, look=outcome.look, attached=outcome.attached) as watch:
        try:
            script.run(args.args)
            clean = True
        except Stop:
            pass  # watch.failure says why
        except RegplugError as error:
            failure = error
        except SystemExit as exit_:
            clean = not exit_.code
            if watch.failure is None:
                raise
        except KeyboardInterrupt as interrupt:
            script.report(interrupt)
            status = outcome.interrupted = 130
        except BaseException as error:
            script.report(error)
            status = 1
        finally:
            if watch.failure is not None:
                failure = SpecError(watch.failure)
            outcome.end(watch, clean=clean and failure is None)
            if failure is None:
                outcome.tell(watch)
    if isinstance(failure, PluginError) and failure.__cause__ is not None:
        traceback.print_exception(failure.__cause__)
    return status if failure is None else _fail(failure)


def _wishes(args: argparse.Namespace) -> _Wishes:
    config: dict[str, Any] = {} if args.config is None else read(Path(args.config))
    plugins = [*config.get("plugins", []), *args.plugins]
    if not plugins:
        raise SpecError("nothing to attach: say -p SPEC, or plugins = [...] in --config")
    report = args.report if args.report is not None else config.get("report")
    every = args.every if args.every is not None else config.get("every")
    if every is not None and every < 1:
        raise SpecError(f"--every must be at least 1, got {every}")
    if report is not None and (not report or "\0" in report):
        raise SpecError(f"--report {report!r} is no folder")
    return _Wishes(plugins, None if report is None else Path(report), every)


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SpecError(f"--report {folder} can't be written: {error.strerror}") from error


def _rank() -> int:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0"))


def _fail(error: BaseException) -> int:
    where = f" (rank {_rank()})" if _rank() else ""
    line = " ".join(str(error).split())
    print(f"regplug run{where}: error: {line}", file=sys.stderr)
    return 2


class _Outcome:
    """What is told at the end, and written to the report's folder."""

    def __init__(self, wishes: _Wishes) -> None:
        self.wishes = wishes
        self.clean = True
        # Held by their sessions, and by nobody once those are gone.
        self.recorders: WeakValueDictionary[str, Recorder] = WeakValueDictionary()
        self.missing: list[str] = []
        self.rank = _rank()
        self.interrupted, self.reported = 0, False

    def end_as_python_does(self) -> None:
        """After Ctrl-C, end by that signal, as a shell expects it."""
        if self.interrupted and sys.platform != "win32":
            sys.stdout.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)

    def attached(self, session: "Session") -> None:
        self.rank = _rank()
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
        from regplug.backend import shards

        if any(shards.is_sharded(p) for p in session.model.parameters()):
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
        lines = [line for entry in watch.entries[:_SHOWN] for line in _told(entry)]
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


def _told(entry: Any) -> list[str]:
    lines = [f"{entry.name}: {entry.title}, {entry.steps:,} real steps"]
    lines += [] if entry.final is None else [f"  {line}" for line in entry.final.splitlines()]
    return lines
