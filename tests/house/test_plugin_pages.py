"""Each plugin that comes along has a page of its own, which is true and complete."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from regplug.discovery import catalog
from tests.house.pages import DOCS, ROOT, Page, page, rows

OFFERS = {o.name: o for o in catalog.offers() if o.source.startswith("regplug ")}
PICTURES = DOCS / "pictures"
SECTIONS = ["When to use it, and when not", "Example", "Arguments", "Metrics", "Reference"]


def of(name: str) -> Page:
    return page(f"plugins/{name}.md")


def shown(path: Path) -> list[str]:
    """Return the specs that a picture is of, which are kept in its file."""
    with Image.open(path) as picture:
        text = picture.text["Description"]
    assert isinstance(text, str)
    return text.splitlines()


def test_each_has_a_page_and_a_place_in_the_overview() -> None:
    assert len(OFFERS) > 20
    assert {path.stem for path in (DOCS / "plugins").glob("*.md")} == set(OFFERS)
    overview = page("plugins.md")
    assert {f"plugins/{name}.md" for name in OFFERS} <= set(overview.links)
    assert set(re.findall(r"^plugins/(\w+)$", overview.text, re.MULTILINE)) == set(OFFERS)


@pytest.mark.parametrize("name", OFFERS)
def test_page_has_all_its_parts(name: str) -> None:
    text = of(name).text
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    cls = catalog.load_class(name)
    assert text.count(f".. autoclass:: regplug_builtins.{cls.__name__}\n") == 1
    assert of(name).section("When to use it, and when not").count("\n- ") + 1 >= 4


@pytest.mark.parametrize("name", OFFERS)
def test_arguments_and_their_defaults_are_those_of_the_class(name: str) -> None:
    parameters = list(inspect.signature(catalog.load_class(name)).parameters.values())
    table = [row[:2] for row in rows(of(name).section("Arguments"))]
    expected = [
        [f"`{p.name}`", "" if p.default is p.empty else f"`{p.default!r}`".replace("'", '"')]
        for p in parameters
    ]
    assert table == expected


@pytest.mark.parametrize("name", OFFERS)
def test_metrics_are_those_that_the_example_prints(name: str) -> None:
    """What it prints is compared with what stands on the page by the test of all pages."""
    (printed,) = [b.text for b in of(name).blocks if b.language == "text"]
    told = re.findall(rf"^({name}/\w+) ", printed, re.MULTILINE)
    assert told
    assert [row[0].strip("`") for row in rows(of(name).section("Metrics"))] == told


@pytest.mark.parametrize("name", OFFERS)
def test_picture_is_small_and_of_what_the_page_says(name: str) -> None:
    picture = PICTURES / f"{name}.png"
    assert f"](../pictures/{name}.png)" in of(name).text
    assert picture.stat().st_size < 40_000
    told = " ".join(of(name).text.split())
    assert [spec for spec in shown(picture) if f"`{spec}`" not in told] == []


def test_pictures_are_those_that_the_script_draws(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, PICTURES / "make.py", "--quick", "--out", tmp_path],
        cwd=ROOT,
        check=True,
        timeout=300,
    )
    drawn = {path.name: shown(path) for path in tmp_path.glob("*.png")}
    assert drawn == {path.name: shown(path) for path in PICTURES.glob("*.png")}
