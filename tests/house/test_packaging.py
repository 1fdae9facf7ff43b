"""The distribution: what it installs, what its wheel holds, and which way its imports point."""

import ast
import importlib
import importlib.metadata
import inspect
import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import regplug

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "regplug"
BUILTINS = ROOT / "plugins" / "regplug_builtins"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PLUGINS: dict[str, str] = PROJECT["entry-points"]["regplug"]

# The house, from the roof to the ground: a module imports only what stands on lower floors.
FLOORS = (
    {"__main__"},
    {"command"},
    {"report", "testing", "tune"},
    # What other packages' conventions want around a session, of which the session knows nothing.
    {"integrations"},
    {"__init__"},
    {"session"},
    {"sessions"},
    {"discovery"},
    {"penalty"},
    {"delivered"},
    {"plugin"},
    {"delivery"},
    {"kernels"},
    {"hookspecs"},
    {"view"},
    {"selection"},
    {"backend"},
    {"installed", "schedules", "table"},
    {"errors"},
)

# What plugins may import of the core, as anyone else's would.
PUBLIC_MODULES = ("regplug", "regplug.errors", "regplug.schedules", "regplug.sessions")

PUBLIC_NAMES = {
    "regplug": {"attach", "Session", "Plugin", "Penalty", "hookimpl", "hookspec"},
    "regplug.errors": {
        "RegplugError",
        "SpecError",
        "PluginNotFoundError",
        "PluginError",
        "SelectionError",
        "StateError",
        "UnsupportedError",
    },
    "regplug.sessions": {"on"},
    "regplug.schedules": {"constant", "linear", "cosine", "exponential", "piecewise", "warmup"},
}

# Words of torch's own that are also the names of plugins: (module, word) -> what torch means by it.
WORDS_OF_TORCH = {
    ("backend.update_rules", "weight_decay"): "a key of torch's parameter groups",
    ("session.own_weights", "weight_decay"): "an argument of torch's optimizers",
    ("selection.in_use", "spectral_norm"): "torch's parametrization of that name",
    ("selection.in_use", "SpectralNorm"): "the class of it",
    ("testing.restoring", "weight_decay"): "an argument of torch's optimizers",
    ("testing.bench", "Dropout"): "a layer of the model that plugins are tried on",
    ("testing.training", "Dropout"): "another such layer",
}


def _modules(package: Path) -> dict[str, Path]:
    """Map dotted names within the package (``"integrations.accelerate"``) to files."""
    return {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(package.rglob("*.py"))
    }


CORE_MODULES = _modules(CORE)


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@dataclass(frozen=True)
class Import:
    """One thing that a module imports, at the top or deferred to a function's run."""

    line: int
    module: str
    name: str | None
    deferred: bool

    @property
    def dotted(self) -> str:
        return self.module if self.name is None else f"{self.module}.{self.name}"


def _imports(node: ast.AST, deferred: bool = False) -> Iterator[Import]:
    """Yield every import that runs; one under ``if TYPE_CHECKING`` does not."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(node.lineno, alias.name, None, deferred)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import"
        for alias in node.names:
            yield Import(node.lineno, node.module or "", alias.name, deferred)
    elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for child in node.orelse:
            yield from _imports(child, deferred)
    else:
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, deferred or inside)


def _core_module(dotted: str) -> str | None:
    """Return the core module that an import reaches, None where it leaves the core alone."""
    package, _, rest = dotted.partition(".")
    if package != "regplug":
        return None
    while rest and rest not in CORE_MODULES:
        rest = rest.rpartition(".")[0]
    return rest or "__init__"


def _floor(module: str) -> int:
    for name in (module, module.partition(".")[0]):
        for height, names in enumerate(reversed(FLOORS)):
            if name in names:
                return height
    raise AssertionError(f"regplug.{module} stands on no floor: give it one in FLOORS")


def _words(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield every name and string of the code with its line; docstrings and comments are prose."""
    prose = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if node in prose:
            continue
        for _, field in ast.iter_fields(node):
            for item in field if isinstance(field, list) else [field]:
                if isinstance(item, str):
                    yield getattr(node, "lineno", 0), item


# What is installed


def test_installed_entry_points_are_those_of_pyproject() -> None:
    declared = {("regplug", name, value) for name, value in PLUGINS.items()}
    declared |= {("console_scripts", name, value) for name, value in PROJECT["scripts"].items()}
    installed = {
        (entry_point.group, entry_point.name, entry_point.value)
        for entry_point in importlib.metadata.distribution("regplug").entry_points
    }
    assert installed == declared, "install regplug again: its entry points are stale"


def test_installed_version_is_that_of_pyproject() -> None:
    assert importlib.metadata.version("regplug") == PROJECT["version"] == regplug.__version__


@pytest.mark.parametrize("value", [*PLUGINS.values(), *PROJECT["scripts"].values()])
def test_entry_point_loads(value: str) -> None:
    module, _, attribute = value.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


def test_one_module_one_plugin_one_entry_point() -> None:
    modules = {f"regplug_builtins.{name}" for name in _modules(BUILTINS) if name[0] != "_"}
    assert modules == {value.partition(":")[0] for value in PLUGINS.values()}
    assert len(modules) == len(PLUGINS)
    for name, value in PLUGINS.items():
        assert value.startswith(f"regplug_builtins.{name}:")


def test_built_ins_are_offered_to_import() -> None:
    builtins = importlib.import_module("regplug_builtins")
    assert set(builtins.__all__) >= {value.partition(":")[2] for value in PLUGINS.values()}
    assert all(hasattr(builtins, name) for name in builtins.__all__)


def test_source_root_of_plugins_is_no_package() -> None:
    assert not (ROOT / "plugins" / "__init__.py").exists()


# What is public


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_public_names_exist(module: str) -> None:
    found = importlib.import_module(module)
    assert set(found.__all__) >= PUBLIC_NAMES[module]
    assert all(hasattr(found, name) for name in found.__all__)


def test_public_modules_are_attributes_of_the_package() -> None:
    assert inspect.ismodule(regplug.schedules)
    assert inspect.ismodule(regplug.errors)


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_public_names_are_documented(module: str) -> None:
    found = importlib.import_module(module)
    undocumented = [] if inspect.getdoc(found) else [module]
    for name in found.__all__:
        thing = getattr(found, name)
        if not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue
        if not inspect.getdoc(thing):
            undocumented.append(f"{module}.{name}")
        if inspect.isclass(thing):
            undocumented += [
                f"{module}.{name}.{attribute}"
                for attribute, member in vars(thing).items()
                if attribute[0] != "_"
                and (inspect.isroutine(member) or isinstance(member, property))
                and not inspect.getdoc(getattr(thing, attribute))
            ]
    assert undocumented == []


# Which way imports point


@pytest.mark.parametrize("module", CORE_MODULES)
def test_core_names_no_plugin(module: str) -> None:
    names = {"regplug_builtins", *PLUGINS, *(value.partition(":")[2] for value in PLUGINS.values())}
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(names)))})\b")
    found = {
        (word, line)
        for line, text in _words(_parse(CORE_MODULES[module]))
        for word in pattern.findall(text)
        if (module, word) not in WORDS_OF_TORCH
    }
    assert found == set()


@pytest.mark.parametrize("module", CORE_MODULES)
def test_core_module_imports_only_lower_floors(module: str) -> None:
    height = _floor(module)
    wrong = [
        f"line {found.line}: {found.dotted}"
        for found in _imports(_parse(CORE_MODULES[module]))
        if (target := _core_module(found.dotted)) is not None
        and _floor(target) >= height
        # Modules of one folder are one floor's rooms, and a package stands on its own modules.
        and target.partition(".")[0] != module.partition(".")[0]
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "module", [name for name in CORE_MODULES if not name.startswith("integrations")]
)
def test_core_module_loads_accelerate_only_when_used(module: str) -> None:
    wrong = [
        f"line {found.line}: {found.dotted}"
        for found in _imports(_parse(CORE_MODULES[module]))
        if found.module.partition(".")[0] == "accelerate" and not found.deferred
    ]
    assert wrong == []


@pytest.mark.parametrize("module", _modules(BUILTINS))
def test_plugin_imports_only_public_names(module: str) -> None:
    wrong = []
    for found in _imports(_parse(_modules(BUILTINS)[module])):
        if found.module.partition(".")[0] != "regplug" or found.dotted in PUBLIC_MODULES:
            continue
        public = found.module in PUBLIC_MODULES and found.name is not None
        if not (public and found.name in importlib.import_module(found.module).__all__):
            wrong.append(f"line {found.line}: {found.dotted}")
    assert wrong == []


def test_import_brings_in_only_torch_and_pluggy(tmp_path: Path) -> None:
    code = """
        import sys, torch
        before = set(sys.modules)
        import regplug
        print(*{name.partition(".")[0] for name in set(sys.modules) - before})
    """
    loaded = set(_python("-c", inspect.cleandoc(code), cwd=tmp_path).split())
    assert "regplug" in loaded
    assert loaded - sys.stdlib_module_names <= {"regplug", "pluggy", "torch"}


# The wheel


def _python(*arguments: str | Path, cwd: Path, executable: str | Path = sys.executable) -> str:
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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _python("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the scripts of a new environment: the packages of this one, regplug by the wheel."""
    folder = tmp_path_factory.mktemp("installed")
    links = folder / "links"
    links.mkdir()
    required = [re.split(r"[^\w-]", needed, maxsplit=1)[0] for needed in PROJECT["dependencies"]]
    sites = {Path(str(importlib.metadata.distribution(r).locate_file(""))) for r in required}
    for site in sites:
        for entry in site.iterdir():
            # Not regplug itself, nor what leads to the checkout.
            if "regplug" not in entry.name and entry.suffix != ".pth" and entry.name[0] != ".":
                (links / entry.name).symlink_to(entry)

    venv.create(folder / "venv", with_pip=False)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(_python("-I", "-c", purelib, cwd=folder, executable=scripts / "python").strip())
    (site / "links.pth").write_text(f"{links}\n", encoding="utf-8")
    options = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    _python(*("-m", "pip", "--python", scripts / "python", "install", *options, wheel), cwd=folder)
    return scripts


def test_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        license_text = archive.read(f"regplug-{PROJECT['version']}.dist-info/licenses/LICENSE")
    sources = {
        path.relative_to(package.parent).as_posix()
        for package in (CORE, BUILTINS)
        for path in (*package.rglob("*.py"), package / "py.typed")
    }
    assert wheel.name == f"regplug-{PROJECT['version']}-py3-none-any.whl"
    assert sources <= set(names)
    assert {name.partition("/")[0] for name in names} == {"regplug", "regplug_builtins"}
    assert {"regplug/py.typed", "regplug_builtins/py.typed"} <= set(names)
    assert not [name for name in names if name.endswith((".pyc", ".pth")) or "/test_" in name]
    assert license_text == (ROOT / "LICENSE").read_bytes()


def test_wheel_installs_and_attaches_a_built_in(installed: Path, tmp_path: Path) -> None:
    code = """
        import importlib.metadata, json, sys
        import torch
        import regplug

        model = torch.nn.Linear(3, 2)
        before = model.weight.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        with regplug.attach(model, optimizer, ["l1(1e-3)"]) as session:
            model(torch.zeros(1, 3)).sum().backward()
            optimizer.step()
        assert session.steps == 1
        torch.testing.assert_close(model.weight.detach(), before - 0.5 * 1e-3 * before.sign())

        plugins = importlib.metadata.entry_points(group="regplug")
        print(json.dumps({
            "files": [regplug.__file__, sys.modules["regplug_builtins.l1"].__file__],
            "plugins": sorted(plugin.name for plugin in plugins),
        }))
    """
    code = inspect.cleandoc(code)
    said = json.loads(_python("-I", "-c", code, cwd=tmp_path, executable=installed / "python"))
    assert all(Path(file).is_relative_to(installed.parent) for file in said["files"])
    assert said["plugins"] == sorted(PLUGINS)


def test_wheel_installs_the_command(installed: Path) -> None:
    names = {path.stem for path in installed.iterdir()}
    assert set(PROJECT["scripts"]) <= names
