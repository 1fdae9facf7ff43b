"""Plugins of one file, which no distribution offers: ``'./my_penalty.py:MyPenalty(1e-3)'``.

A spec is never evaluated, but the file that it names is Python, and is executed, as an import
would: whoever names a file trusts it.
"""

import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import NamedTuple

from regplug.backend.words import nearest
from regplug.discovery.specs import quoted
from regplug.errors import PluginError, PluginNotFoundError, SpecError
from regplug.installed import FILES
from regplug.plugin import Plugin

__all__ = ["FileSpec", "anchored", "class_in", "split"]

# The path comes before any bracket, quote or comma, so that no argument of a spec looks like one.
_SPEC = re.compile(
    r"\s*(?P<path>[^()\[\]{}'\",=]+?\.py)(?P<named>\s*:\s*(?P<cls>[A-Za-z_]\w*))?"
    r"\s*(?P<call>[(=@].*)?",
    re.DOTALL,
)


# A slash before any bracket, or .py where no string is: no plugin's name has these.
_MEANT = re.compile(r"\s*(?:['\"]?[^'\"(\[{=]*[/\\]|[^'\"]*\.(?:py|ipynb)\b|['\"][^'\"]*\.py\b)")


class FileSpec(NamedTuple):
    """A spec that names a file.

    Attributes:
        path: as it was written.
        cls: the class in it; None for the only one.
        call: its arguments, as a spec has them after the plugin's name.
    """

    path: str
    cls: str | None
    call: str

    @property
    def head(self) -> str:
        """What stands before its arguments."""
        return self.path if self.cls is None else f"{self.path}:{self.cls}"

    @property
    def as_call(self) -> str:
        """The spec as it would be of a plugin's name."""
        return f"{self.cls or 'plugin'}{self.call}"


def split(spec: str) -> FileSpec | None:
    """Return the parts of a spec that names a file, None for one that names a plugin.

    >>> split("./mine.py:Mine(1e-3)")
    FileSpec(path='./mine.py', cls='Mine', call='(1e-3)')
    >>> split("l1(1e-3, where='a.py')") is None
    True

    Raises:
        SpecError: there is something else than a class after the file.
    """
    found = _SPEC.fullmatch(spec)
    if found is not None:
        return FileSpec(found["path"].strip(), found["cls"], found["call"] or "")
    head = spec.partition("(")[0]
    if ".py:" in head and not any(sign in head for sign in "'\"="):
        raise SpecError(
            f"{quoted(spec)} names a file: after the colon comes a class in it, as in "
            "'./file.py:Class(1e-3)'"
        )
    if _MEANT.match(spec):
        raise SpecError(
            f"{quoted(spec)} seems to name a file, which is written './file.py:Class(1e-3)': not "
            "quoted by itself, ending in .py, and with no brackets, quotes, commas or = in its path"
        )
    return None


def anchored(spec: str, folder: Path) -> str:
    """Return a spec whose file, if it names one, is where it is seen from ``folder``.

    >>> anchored("l1(1e-3)", Path("/data"))
    'l1(1e-3)'
    >>> anchored("mine.py:Mine(1e-3) @ net", Path("/data"))
    '/data/mine.py:Mine(1e-3) @ net'
    """
    found = split(spec)
    if found is None:
        return spec
    whole = folder.absolute() / Path(found.path).expanduser()
    before, _, after = spec.partition(found.path)
    return f"{before}{whole}{after}"


def class_in(path: str, cls: str | None) -> type[Plugin]:
    """Return the plugin class in a file, which is executed, unless it was, as it is now.

    Args:
        path: of the file, seen from the working directory.
        cls: its name; None for the only plugin class that the file defines.

    Raises:
        PluginNotFoundError: there is no such file, or no such class in it.
        PluginError: it does not run, or the class is no plugin.
        SpecError: ``cls`` is needed, for there are several.
    """
    file = Path(path).expanduser()
    code = _read(file, path)
    names = vars(_executed(file.resolve(), code))
    module = names["__name__"]
    plugins = {
        name: value
        for name, value in names.items()
        if isinstance(value, type) and issubclass(value, Plugin) and value.__module__ == module
    }
    if cls is not None:
        found = names.get(cls)
        if found is None:
            close = ", ".join(nearest(cls, plugins)) or "no plugin at all"
            raise PluginNotFoundError(f"{path} has no class {cls}: it has {close}")
        if not (isinstance(found, type) and issubclass(found, Plugin)):
            raise PluginError(f"{path}: {cls} is {found!r}, which is no subclass of regplug.Plugin")
        return found
    public = {name: plugin for name, plugin in plugins.items() if not name.startswith("_")}
    if not public:
        raise PluginNotFoundError(
            f"{path} defines no subclass of regplug.Plugin (or regplug.Penalty)"
        )
    if len(public) > 1:
        ways = " or ".join(f"'{path}:{name}(…)'" for name in public)
        raise SpecError(f"{path} defines several plugins: say which, {ways}")
    return next(iter(public.values()))


def _read(file: Path, path: str) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        near = [p.name for p in sorted(file.parent.glob("*.py"))] if file.parent.is_dir() else []
        close = nearest(file.name, near)
        there = f"; there is {', '.join(close)}" if close else ""
        raise PluginNotFoundError(
            f"there is no file {path} (seen from {Path.cwd()}){there}"
        ) from None
    except OSError as error:
        raise PluginError(f"{path} can't be read: {error.strerror}") from error


def _executed(file: Path, code: bytes) -> object:
    """Return the module of a file, executed once for each content that it has."""
    digest = hashlib.sha256(code).hexdigest()[:8]
    place = hashlib.sha256(str(file).encode()).hexdigest()[:8]
    name = f"regplug_file_{re.sub(r'[^A-Za-z0-9_]', '_', file.stem)}_{place}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickles look for it
    FILES[name] = (file.name, digest)
    try:
        # Of what was read, and not of what a cache of bytecode has of the file.
        exec(compile(code, str(file), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name], FILES[name]
        raise PluginError(f"{file.name} does not run: {type(error).__name__}: {error}") from error
    except BaseException:
        del sys.modules[name], FILES[name]
        raise
    return module
