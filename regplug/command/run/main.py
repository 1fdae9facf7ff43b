"""``regplug run``: a training script, unedited, with plugins attached to what it trains.

They are attached to each torch optimizer that the script makes, and act at its steps, so the
weights are those of a script that had attached them before its loop.

    regplug run -p 'l1(1e-4, delivery="proximal")' train.py --epochs 5
    regplug run -p 'weight_decay(0.1) @ netG' -p 'l2(1e-4) @ netD' --report out gan.py
    torchrun --nproc_per_node 2 -m regplug run -p 'l1(1e-4)' -m package.train

    regplug run -p './my_penalty.py:MyPenalty(1e-3)' train.py

The last names a class in a file, for which no package is needed: the code in that file is executed.

A pattern after @ says which models a plugin is for. It is compared with the names of the variables
that hold model and optimizer and with the names of their classes; the summary at the end shows
them. What can be known to be wrong before the script starts, or when a plugin is attached, ends it
with exit status 2 and one line.
"""

import argparse
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from regplug.command.program import Commands, Interrupt, Script, add_target, subparser
from regplug.command.run.outcome import Outcome, Wishes, rank
from regplug.errors import PluginError, RegplugError, SpecError

__all__ = ["add_parser", "main"]


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add ``run`` to the subcommands of the ``regplug`` command."""
    summary = "run a script with plugins attached, without editing it"
    parser = subparser(commands, "run", __doc__, summary)
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
        help="a plugin, for all models or those of the pattern; may be given several times. "
        "'./file.py:Class(1e-3)' is a class in a file of your own, which is executed",
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
    add_target(parser)


def main(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        The script's own exit status (or its ``SystemExit`` comes out), 2 if a plugin, an argument
        or an attachment is wrong.
    """
    # Imports torch, as the plugins do too: the script finds it imported already.
    from regplug.command.run.attaching import Stop, Watch, checked

    try:
        wishes = _wishes(args)
        orders = checked(wishes.plugins)
        if wishes.report is not None and rank() == 0:
            _check_folder(wishes.report)
        script = Script(args.script, is_module=args.module)
    except RegplugError as error:
        return _fail(error)
    outcome, ctrl_c = Outcome(wishes), Interrupt()
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
            status = ctrl_c.came()
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


def _wishes(args: argparse.Namespace) -> Wishes:
    # Not above: torch comes with them, for which no --help should wait.
    from regplug.command.run.config import read
    from regplug.discovery.files import anchored

    config: dict[str, Any] = {} if args.config is None else read(Path(args.config))
    # A file is where it is now, wherever the script goes; one in a TOML file is beside that.
    here, beside = Path.cwd(), Path(args.config or ".").absolute().parent
    plugins = [anchored(text, beside) for text in config.get("plugins", [])]
    plugins += [anchored(text, here) for text in args.plugins]
    if not plugins:
        raise SpecError("nothing to attach: say -p SPEC, or plugins = [...] in --config")
    report = args.report if args.report is not None else config.get("report")
    every = args.every if args.every is not None else config.get("every")
    if every is not None and every < 1:
        raise SpecError(f"--every must be at least 1, got {every}")
    if report is not None and (not report or "\0" in report):
        raise SpecError(f"--report {report!r} is no folder")
    return Wishes(plugins, None if report is None else Path(report), every)


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SpecError(f"--report {folder} can't be written: {error.strerror}") from error


def _fail(error: BaseException) -> int:
    where = f" (rank {rank()})" if rank() else ""
    line = " ".join(str(error).split())
    print(f"regplug run{where}: error: {line}", file=sys.stderr)
    return 2
