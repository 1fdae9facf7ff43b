"""Running a script or a module as ``python`` itself would, in this process."""

import argparse
import atexit
import importlib.machinery
import importlib.util
import io
import os
import signal
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from regplug.errors import SpecError

__all__ = ["Commands", "Interrupt", "Script", "add_target", "subparser"]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def subparser(
    commands: Commands, name: str, description: str | None, summary: str
) -> argparse.ArgumentParser:
    """Add a subcommand of ``regplug`` that runs a program, and return its parser.

    Args:
        commands: where it is added.
        name: of the subcommand.
        description: what its own help says, in lines as they are.
        summary: what the help of ``regplug`` says.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return parser


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add which program is to be run, after all that is for regplug itself."""
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module's name")
    parser.add_argument("script", metavar="SCRIPT")
    parser.add_argument("args", nargs=argparse.REMAINDER, metavar="ARGS", help="the script's own")


class Interrupt:
    """Ends this process after Ctrl-C as Python does: by that signal, as a shell expects it.

    To be made before the program runs, so that all of the program's own exit handlers come first.
    """

    def __init__(self) -> None:
        self._came = False
        atexit.register(self._end)

    def came(self) -> int:
        """Note that it came, and return the exit status of where there is no such signal."""
        self._came = True
        return 130

    def _end(self) -> None:
        if self._came and sys.platform != "win32":
            sys.stdout.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)


class Script:
    """A program that is to be run: ``python target …``, or ``python -m target …``.

    Args:
        target: the path of a file, or the dotted name of a module or package.
        is_module: which of the two.

    Raises:
        SpecError: there is no such file or module.
    """

    def __init__(self, target: str, *, is_module: bool) -> None:
        self.target = target
        self.spec: importlib.machinery.ModuleSpec | None = None
        self._path0 = str(Path.cwd() if is_module else Path(target).resolve().parent)
        if is_module:
            self._enter()
            self.spec = _spec_of(target)
            self.file = self.argv0 = self.spec.origin or target
        else:
            path = Path(target)
            if path.is_dir():
                raise SpecError(f"{target} is a directory: name the script in it, or use -m")
            if not path.is_file():
                raise SpecError(f"there is no script {target}")
            self.file, self.argv0 = str(path.absolute()), target

    def _enter(self) -> None:
        # Python puts the script's folder there, unless it was told not to (-P).
        if not getattr(sys.flags, "safe_path", False):
            sys.path[0] = self._path0

    def run(self, arguments: Sequence[str]) -> None:
        """Run it as ``__main__``, with ``sys.argv`` and ``sys.path[0]`` its own.

        Whatever it raises comes out, ``SystemExit`` too.
        """
        sys.argv = [self.argv0, *arguments]
        self._enter()
        # Kept in place afterwards: exit handlers and pickles of the script still need it.
        main = types.ModuleType("__main__")
        main.__dict__.update(__file__=self.file, __spec__=self.spec, __builtins__=__builtins__)
        main.__dict__.update(__cached__=None, __package__=None, __loader__=None)
        if self.spec is not None:
            main.__dict__.update(__package__=self.spec.parent, __loader__=self.spec.loader)
            main.__dict__.update(__cached__=self.spec.cached)
        sys.modules["__main__"] = main
        exec(self._code(), main.__dict__)

    def _code(self) -> types.CodeType:
        if self.spec is not None:
            code = self.spec.loader.get_code(self.spec.name)  # type: ignore[union-attr]
            assert isinstance(code, types.CodeType)
            return code
        with io.open_code(self.file) as stream:
            return compile(stream.read(), self.file, "exec", dont_inherit=True)

    def report(self, error: BaseException) -> None:
        """Let ``sys.excepthook`` tell of ``error``, from the script's first frame on."""
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename != self.file:
            frames = frames.tb_next
        error.__traceback__ = frames
        sys.excepthook(type(error), error, frames)


def _spec_of(name: str) -> Any:
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            name = f"{name}.__main__"
            spec = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise SpecError(f"there is no module {name} to run: {error}") from error
    if spec is None or spec.loader is None or not hasattr(spec.loader, "get_code"):
        raise SpecError(f"there is no module {name} to run")
    return spec
