"""What is public, and which way imports point."""

import ast
import importlib
import importlib.metadata
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import regplug
from tests.house.sources import BUILTINS, CORE, PLUGINS, modules_of, python

# The house, from the roof to the ground: a module imports only what stands on lower floors.
FLOORS = (
    {"__main__"},
    {"command"},
    {"doctor", "report", "testing", "tune"},
    # What other packages' conventions want around a session, of which the session knows nothing.
    {"integrations"},
    {"__init__"},
    {"session"},
    {"sessions"},
    {"discovery"},
    {"penalty"},
    {"bases"},
    {"plugin"},
    {"delivery"},
    {"kernels"},
    {"hookspecs"},
    {"view"},
    {"selection"},
    {"finding"},
    {"backend"},
    {"strengths"},
    {"installed", "schedules", "table"},
    {"values"},
    {"errors"},
)

# What plugins may import of the core, as anyone else's would.
PUBLIC_MODULES = (
    "regplug",
    "regplug.errors",
    "regplug.schedules",
    "regplug.sessions",
    "regplug.strengths",
)

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
    "regplug.strengths": {"per_layer"},
    "regplug.schedules": {"constant", "linear", "cosine", "exponential", "piecewise", "warmup"},
}

# Words of torch's own that are also the names of plugins: (module, word) -> what torch means by it.
WORDS_OF_TORCH = {
    ("backend.update_rules", "weight_decay"): "a key of torch's parameter groups",
    ("session.own_weights", "weight_decay"): "an argument of torch's optimizers",
    ("selection.in_use", "spectral_norm"): "torch's parametrization of that name",
    ("selection.in_use", "SpectralNorm"): "the class of it",
    ("testing.checks.restoring", "weight_decay"): "an argument of torch's optimizers",
    ("doctor.penalty_checks", "l1"): "what a finding or a report calls a thing of any loop",
    ("doctor.penalty_checks", "l2"): "what a finding or a report calls a thing of any loop",
    ("doctor.decay_checks", "l2"): "what a finding or a report calls a thing of any loop",
    ("doctor.dropout_checks", "Dropout"): "a layer of torch's",
    ("doctor.functional", "dropout"): "a function of torch's",
    ("doctor.penalty_checks", "weight_decay"): "a key of torch's parameter groups",
    ("doctor.decay_checks", "weight_decay"): "a key of torch's parameter groups",
    ("doctor.dropout_checks", "dropout"): "what a finding or a report calls a thing of any loop",
    ("doctor.penalty_checks", "L2"): "what a finding or a report calls a thing of any loop",
    ("doctor.dropouts", "drop_path"): "an attribute of other people's modules",
    ("doctor.decay", "weight_decay"): "a key of torch's parameter groups",
    ("doctor.dropouts", "dropout"): "what a finding or a report calls a thing of any loop",
    ("doctor.dropouts", "Dropout"): "what a finding or a report calls a thing of any loop",
    ("doctor.forms", "l1"): "what a finding or a report calls a thing of any loop",
    ("doctor.forms", "l2"): "what a finding or a report calls a thing of any loop",
    ("doctor.groups", "l1"): "what a finding or a report calls a thing of any loop",
    ("doctor.groups", "l2"): "what a finding or a report calls a thing of any loop",
    ("doctor.groups", "dropout"): "what a finding or a report calls a thing of any loop",
    ("doctor.report", "l1"): "what a finding or a report calls a thing of any loop",
    ("doctor.report", "l2"): "what a finding or a report calls a thing of any loop",
    ("doctor.report", "dropout"): "what a finding or a report calls a thing of any loop",
    ("doctor.shares", "l1"): "what a finding or a report calls a thing of any loop",
    ("doctor.shares", "l2"): "what a finding or a report calls a thing of any loop",
    ("doctor.summary", "l1"): "what a finding or a report calls a thing of any loop",
    ("doctor.summary", "l2"): "what a finding or a report calls a thing of any loop",
    ("doctor.summary", "dropout"): "what a finding or a report calls a thing of any loop",
    ("testing.bench", "Dropout"): "a layer of the model that plugins are tried on",
    ("testing.checks.training", "Dropout"): "another such layer",
    ("testing.checks.randomness", "dropout"): "what such layers do",
    ("testing.checks.kinds", "dropout"): "an argument of recurrent layers",
    ("testing.checks.costs", "Dropout"): "another such layer",
    ("testing.warming", "Dropout"): "another such layer",
}

CORE_MODULES = modules_of(CORE)


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


@pytest.mark.parametrize("module", modules_of(BUILTINS))
def test_plugin_imports_only_public_names(module: str) -> None:
    wrong = []
    for found in _imports(_parse(modules_of(BUILTINS)[module])):
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
    loaded = set(python("-c", inspect.cleandoc(code), cwd=tmp_path).split())
    assert "regplug" in loaded
    assert loaded - sys.stdlib_module_names <= {"regplug", "pluggy", "torch"}
