"""``regplug new``: a package with one plugin, which installs and passes its tests as it is."""

import keyword
import re
from importlib import resources
from pathlib import Path
from string import Template

import regplug
from regplug import hookspecs
from regplug.errors import SpecError
from regplug.installed import offers

__all__ = ["create"]

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def create(name: str, into: Path = Path()) -> Path:
    """Write the folder of a new package with the plugin ``name``.

    Args:
        name: of the plugin, as it will stand in specs: lower-case letters, digits and single
            underscores, a letter first.
        into: the folder in which the package's folder is made.

    Returns:
        The new folder, ``regplug-<name>`` with hyphens for underscores.

    Raises:
        SpecError: the name is none, is taken by an installed plugin, or there is such a folder or
            no ``into``. Nothing is written then, and never is anything overwritten.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = create("smoothness", Path(folder))
    ...     made.name, sorted(path.name for path in made.iterdir())[:2]
    ('regplug-smoothness', ['.github', 'README.md'])
    """
    _check(name)
    distribution = "regplug-" + name.replace("_", "-")
    folder = into / distribution
    if not into.is_dir():
        raise SpecError(f"there is no folder {str(into)!r} to write {distribution} into")
    if folder.exists():
        raise SpecError(f"{str(folder)!r} exists already, and nothing is overwritten")
    values = {
        "name": name,
        "title": name.replace("_", " "),
        "distribution": distribution,
        "module": "regplug_" + name,
        "cls": "".join(part.capitalize() for part in name.split("_")),
        "version": regplug.__version__,
        "contract": hookspecs.VERSION,
    }
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{values['module']}.py": "module.py",
        f"tests/test_{name}.py": "contract.py",
        ".github/workflows/ci.yml": "ci.yml",
    }
    templates = resources.files("regplug.command") / "templates"
    texts = {
        path: Template((templates / f"{source}.txt").read_text("utf-8")).substitute(values)
        for path, source in files.items()
    }
    for path, text in texts.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        # "x": not even a file that came there meanwhile is overwritten.
        with target.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    return folder


def _check(name: str) -> None:
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise SpecError(
            f"{name!r} is no name for a plugin: it takes lower-case letters, digits and single "
            "underscores, begins with a letter, and is no word of Python, as in 'smoothness' or "
            "'total_variation'"
        )
    taken = [offer.source for offer in offers() if offer.name == name]
    if taken:
        raise SpecError(
            f"the name {name!r} is taken, by {' and '.join(taken)}: two plugins of one name can't "
            "be installed together, so choose another (`regplug plugins` lists those taken)"
        )
