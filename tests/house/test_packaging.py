"""The distribution: what it installs, and what its wheel holds."""

import importlib
import importlib.metadata
import inspect
import json
import os
import re
import venv
import zipfile
from pathlib import Path

import pytest

import regplug
from tests.house.sources import BUILTINS, CORE, PLUGINS, PROJECT, ROOT, modules_of, python


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
    modules = {f"regplug_builtins.{name}" for name in modules_of(BUILTINS) if name[0] != "_"}
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


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
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
    site = Path(python("-I", "-c", purelib, cwd=folder, executable=scripts / "python").strip())
    (site / "links.pth").write_text(f"{links}\n", encoding="utf-8")
    options = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    python(*("-m", "pip", "--python", scripts / "python", "install", *options, wheel), cwd=folder)
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


def test_its_front_page_links_to_the_repository(wheel: Path) -> None:
    """A package index shows it, and has none of the files beside it."""
    with zipfile.ZipFile(wheel) as archive:
        told = archive.read(f"regplug-{PROJECT['version']}.dist-info/METADATA").decode()
    headers, _, text = told.partition("\n\n")
    assert "Description-Content-Type: text/markdown" in headers
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    ours = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", front)
    theirs = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", text)
    assert len(ours) > 20
    for (image, path), (still, link) in zip(ours, theirs, strict=True):
        kind = "raw" if image else "blob"
        start = f"{PROJECT['urls']['Source']}/{kind}/v{PROJECT['version']}/"
        assert (still, link) == (image, path if path.startswith("http") else start + path)


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
    said = json.loads(python("-I", "-c", code, cwd=tmp_path, executable=installed / "python"))
    assert all(Path(file).is_relative_to(installed.parent) for file in said["files"])
    assert said["plugins"] == sorted(PLUGINS)


def test_wheel_installs_the_command(installed: Path) -> None:
    names = {path.stem for path in installed.iterdir()}
    assert set(PROJECT["scripts"]) <= names


def test_version_is_the_same_wherever_it_stands() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    recipe = (ROOT / "recipe" / "recipe.yaml").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [regplug.__version__]
    assert re.findall(r'^  version: "(.*)"$', recipe, re.MULTILINE) == [regplug.__version__]
    for name in ("python >=", "pytorch >=", "pluggy >=", "accelerate >="):
        assert name in recipe
    for wanted in PROJECT["dependencies"]:
        assert (
            wanted.replace("torch>", "pytorch >").replace(">=", " >=").replace("  ", " ") in recipe
        )


def test_everything_that_was_public_in_0_1_is_still_there() -> None:
    text = (Path(__file__).parent / "names_of_0_1.json").read_text(encoding="utf-8")
    for path, names in json.loads(text).items():
        try:
            owner = importlib.import_module(path)
        except ModuleNotFoundError:
            module, _, name = path.rpartition(".")
            owner = getattr(importlib.import_module(module), name)
        assert [name for name in names if not hasattr(owner, name)] == [], path
