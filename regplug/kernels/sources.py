"""Generated functions as files, for compilers read a function's source, and keep what they make.

They lie in ``$REGPLUG_CACHE_DIR``, by default ``regplug`` in the user's cache folder. Where no file
can be written there, in a temporary folder that ends with the process.
"""

import atexit
import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["executed", "folder"]


@cache
def folder() -> Path:
    """Return the folder of generated functions; it is made if it is not there."""
    for path in (_preferred(), None):
        with contextlib.suppress(OSError):
            return _writable(path)
    raise OSError("no folder for generated functions can be written")


def _preferred() -> Path:
    if own := os.environ.get("REGPLUG_CACHE_DIR"):
        return Path(own)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "regplug"


def _writable(path: Path | None) -> Path:
    if path is None:
        path = Path(tempfile.mkdtemp(prefix="regplug-"))
        atexit.register(shutil.rmtree, path, ignore_errors=True)
        return path
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        return path


def executed(source: str) -> dict[str, Any]:
    """Return what a module of this source defines. It is one of a file."""
    digest = hashlib.blake2b(source.encode(), digest_size=12).hexdigest()
    file = folder() / f"kernel_{digest}.py"
    if not file.is_file() or file.read_text(encoding="utf-8") != source:
        # Other processes may be about it, too.
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=folder(), suffix=".tmp", delete=False
        ) as new:
            new.write(source)
        Path(new.name).replace(file)
    # Compilers find again by its module what they keep of a function.
    module = ModuleType(f"regplug_{file.stem}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module
    exec(compile(source, str(file), "exec"), vars(module))
    return vars(module)
