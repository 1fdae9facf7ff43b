"""The command ``regplug``: what is installed, and the tools around it.

``regplug plugins`` lists, ``regplug check`` examines, ``regplug new`` starts a plugin of one's own,
``regplug run`` attaches plugins to a script that is not edited, and ``regplug doctor`` tells what
the regularization of one really does.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import regplug
from regplug.errors import RegplugError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        argv: the arguments after the command's name; None for those of this process.

    Returns:
        0 if all is well, 1 if an exam was failed or an error was told; argparse itself exits with
        2 on arguments that it can't read.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        status: int = args.command(args)
    except RegplugError as error:
        print(f"regplug: error: {error}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="regplug", description="Regularizers as plugins, for any PyTorch training loop."
    )
    parser.add_argument("--version", action="version", version=f"regplug {regplug.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_plugins(commands)
    _add_check(commands)
    _add_new(commands)
    _add_run(commands)
    _add_doctor(commands)
    return parser


def _add_plugins(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "plugins", help="list every installed plugin", description="List every installed plugin."
    )
    parser.add_argument("--json", action="store_true", help="as a JSON list")
    parser.set_defaults(command=_plugins)


def _plugins(args: argparse.Namespace) -> int:
    from regplug.command.shelf import as_json, as_table, shelf

    entries = shelf()
    print(json.dumps(as_json(entries), indent=2) if args.json else as_table(entries))
    return 0


def _add_check(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from regplug.command.check import add_arguments, check

    parser = commands.add_parser(
        "check",
        help="examine plugins",
        description="Let plugins sit the whole exam; exit with 0 if they pass, and were seen to "
        "act, and with 1 if not.",
    )
    add_arguments(parser)
    parser.set_defaults(command=check)


def _add_new(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "new",
        help="start a package with a plugin of your own",
        description="Write a package with a plugin that installs and passes its tests as it is.",
    )
    parser.add_argument("name", metavar="NAME", help="of the plugin, such as smoothness")
    parser.add_argument(
        "--into",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="where the package's folder is made (here, by default)",
    )
    parser.set_defaults(command=_new)


def _new(args: argparse.Namespace) -> int:
    from regplug.command.scaffold import create

    folder = create(args.name, args.into)
    # Without the dot, pip would look for a package of that name in an index.
    shown = str(folder) if folder.is_absolute() else f"./{folder.as_posix()}"
    # Editable, or pytest would try the copy of before the next edit; and pytest is in the extra.
    install = f"pip install --editable {shlex.quote(f'{shown}[test]')}"
    print(f"wrote {shown}\n\nnext:\n  {install}\n  cd {shlex.quote(shown)} && pytest")
    return 0


def _add_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from regplug.command.run import main

    main.add_parser(commands).set_defaults(command=main.main)


def _add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from regplug.command.doctor import main

    main.add_parser(commands)
