"""The file behind ``regplug run --config``."""

from pathlib import Path
from typing import Any

from regplug.discovery.catalog import did_you_mean
from regplug.errors import SpecError

__all__ = ["read"]


def read(path: Path) -> dict[str, Any]:
    """Return what the TOML file says: ``plugins``, ``report`` and ``every``, each if it is there.

    Raises:
        SpecError: it can't be read, or says anything else.
    """
    try:
        import tomllib
    except ModuleNotFoundError:
        try:
            import tomli as tomllib  # type: ignore[import-not-found,no-redef]
        except ModuleNotFoundError:
            raise SpecError("--config needs Python 3.11, or the package tomli") from None
    try:
        config = tomllib.loads(path.read_text("utf-8-sig"))
    except RecursionError:
        raise SpecError(f"--config {path} can't be read: it is nested too deep") from None
    except (OSError, ValueError) as error:  # of TOML's errors and of numbers too long, too
        raise SpecError(f"--config {path} can't be read: {error}") from error
    kinds = {"plugins": list, "report": str, "every": int}
    for key, value in config.items():
        if key not in kinds:
            raise SpecError(f"--config {path}: {_shown(key)} is none of {', '.join(kinds)}")
        fits = type(value) is kinds[key] and value != ""
        if not fits or (key == "plugins" and not all(isinstance(item, str) for item in value)):
            hint = did_you_mean(value) if key == "plugins" else ""
            raise SpecError(f"--config {path}: {key} must not be {_shown(value)}{hint}")
    return config


def _shown(value: object, most: int = 120) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        return f"such a {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}…"
