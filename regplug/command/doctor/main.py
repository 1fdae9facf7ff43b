"""``regplug doctor``: what the regularization of a training script really does.

The script runs as it would without the doctor, to the bit; it is not edited and needs no plugin.
At the end a table is printed on stderr for each model and its optimizer, and findings, worst first.

    regplug doctor train.py --epochs 1
    regplug doctor --steps 50 --json out.json -m package.train
    torchrun --nproc_per_node 2 -m regplug doctor train.py

The exit status is the script's own; with --strict it is 3 if there is a warning or an error.
"""

import argparse
import json
import sys
from pathlib import Path

from regplug.command.program import Commands, Interrupt, Script, add_target, subparser
from regplug.command.run.outcome import rank
from regplug.errors import RegplugError, SpecError

__all__ = ["add_parser", "main"]


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add ``doctor`` to the subcommands of the ``regplug`` command."""
    summary = "run a script, and tell what its regularization really does"
    parser = subparser(commands, "doctor", __doc__, summary)
    parser.add_argument(
        "--steps",
        type=int,
        default=20,
        metavar="N",
        help="look at the first N steps, and then ever more rarely (20 by default)",
    )
    parser.add_argument("--json", metavar="FILE", help="write what is found there, as JSON")
    parser.add_argument(
        "--strict", action="store_true", help="exit with 3 if there is a warning or an error"
    )
    add_target(parser)
    parser.set_defaults(command=main)
    return parser


def main(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        The script's own exit status (or its ``SystemExit`` comes out), 3 with ``--strict`` if
        there is a warning or an error, 2 if an argument is wrong.
    """
    try:
        if args.steps < 1:
            raise SpecError(f"--steps must be at least 1, got {args.steps}")
        path = None if args.json is None else _writable(args.json)
        script = Script(args.script, is_module=args.module)
    except RegplugError as error:
        print(f"regplug doctor: error: {error}", file=sys.stderr)
        return 2
    from regplug.command.doctor.examining import Examiner

    status, ctrl_c = 0, Interrupt()
    with Examiner(args.steps) as examiner:
        try:
            script.run(args.args)
        except SystemExit as exit_:
            # Told below, and then raised anew: it may have a message.
            bad = _tell(examiner, path)
            if args.strict and bad and exit_.code in (None, 0):
                return 3
            raise
        except KeyboardInterrupt as interrupt:
            script.report(interrupt)
            status = ctrl_c.came()
        except BaseException as error:
            script.report(error)
            status = 1
        try:
            bad = _tell(examiner, path)
        except KeyboardInterrupt:
            return ctrl_c.came()
    return 3 if args.strict and bad and status == 0 else status


def _writable(name: str) -> Path:
    """Return the path of a file that can be written, without leaving one there.

    Raises:
        SpecError: it can't be, as is better known now than after the run.
    """
    try:
        path = Path(name).absolute()
        existed = path.exists()
        # Who reads from a pipe would take this for its end.
        if rank() == 0 and (not existed or path.is_file() or path.is_dir()):
            with path.open("a"):
                pass
            if not existed:
                path.unlink()
    except (OSError, ValueError) as error:  # a name with a null byte, too
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"--json {name} can't be written: {reason}") from error
    return path


def _tell(examiner: object, path: Path | None) -> bool:
    """Print what was found, and return whether there is a warning or an error."""
    from regplug.command.doctor.examining import Examiner
    from regplug.doctor.report import as_json

    assert isinstance(examiner, Examiner)
    reports = examiner.reports()
    bad = any(f.severity != "note" for report in reports for f in report.findings)
    if rank() != 0:
        return bad
    sys.stdout.flush()
    lines = [line for report in reports for line in str(report).splitlines()]
    lines += examiner.missed
    if not reports:
        lines.append(
            "no optimizer of torch took a step in this process, so there is nothing to tell of"
        )
    if path is not None:
        text = json.dumps(as_json(reports), indent=2, ensure_ascii=False)
        try:
            path.write_text(text, "utf-8")
        except OSError as error:  # the folder is gone by now, or the disk is full
            lines.append(f"error: --json {path} can't be written: {error.strerror}")
    for line in lines:
        print(f"regplug doctor: {line}", file=sys.stderr)
    return bad
