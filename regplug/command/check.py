"""The command ``regplug check``: the exam, with its progress and its report."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from regplug.errors import SpecError

__all__ = ["add_arguments", "check"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes to a parser."""
    parser.add_argument(
        "specs",
        nargs="+",
        metavar="SPEC",
        help="such as 'name(1e-3)', or './file.py:Class(1e-3)' for a class in a file of your own, "
        "which is executed",
    )
    parser.add_argument(
        "--only", metavar="ID,…", help="only these checks, by their ids, with commas between"
    )
    parser.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="ID=REASON",
        help="a check that is known to fail, with the reason; may be given several times",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="as a JSON list of results, each with the version of the exam",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="a line for each check, on a terminal too"
    )


def check(args: argparse.Namespace) -> int:
    """Examine the plugins and print what was found; return the exit status."""
    from regplug.testing import check_plugin

    expected = {}
    for item in args.expect:
        id, equals, reason = item.partition("=")  # noqa: A001
        if not (equals and reason.strip()):
            raise SpecError(f"--expect wants ID=REASON, got {item!r}")
        expected[id] = reason
    only = None if args.only is None else [part.strip() for part in args.only.split(",")]
    results = []
    passed = True
    for spec in args.specs:
        with _Progress(spec, lines=args.verbose) as progress:
            report = check_plugin(spec, checks=only, expected_failures=expected, told=progress.told)
        passed = passed and report.passed
        if args.json:
            results += report.as_json()
        else:
            print(report, flush=True)
    if args.json:
        print(json.dumps(results, indent=2))
    return 0 if passed else 1


class _Progress:
    """Tells which check is made: a bar on a terminal, else a line for each. Both on stderr."""

    def __init__(self, spec: str, *, lines: bool) -> None:
        self._spec, self._bar = spec, None
        tqdm = None if lines or not _is_wide() else _tqdm()
        if tqdm is not None:
            self._bar = tqdm(desc=spec, unit="check", leave=False)

    def told(self, check: str, number: int, of: int) -> None:
        """Tell of a check before it is made."""
        if self._bar is None:
            print(f"{self._spec}: {check} ({number + 1} of {of})", file=sys.stderr, flush=True)
            return
        self._bar.total = of
        self._bar.set_postfix_str(check, refresh=False)
        self._bar.update(number - self._bar.n)
        self._bar.refresh()

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _is_wide() -> bool:
    """Whether stderr is a terminal that says how wide it is: of no width, a bar shows nothing."""
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return False


def _tqdm() -> Callable[..., Any] | None:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    found: Callable[..., Any] = tqdm
    return found
