"""Where the sources are, what pyproject says of them, and a Python that runs elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "regplug"
BUILTINS = ROOT / "plugins" / "regplug_builtins"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PLUGINS: dict[str, str] = PROJECT["entry-points"]["regplug"]


def modules_of(package: Path) -> dict[str, Path]:
    """Map dotted names within the package (``"integrations.accelerate"``) to files."""
    return {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(package.rglob("*.py"))
    }


def python(*arguments: str | Path, cwd: Path, executable: str | Path = sys.executable) -> str:
    """Run Python outside the checkout, and return what it prints."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
