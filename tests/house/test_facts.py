"""What pages state is so: deliveries, selections, schedules, plugins, errors, the demo."""

import importlib
import inspect
import re
import sys

import pytest
from PIL import Image
from torch import nn

import regplug
from regplug import errors, schedules
from regplug.discovery import catalog
from regplug.penalty import DELIVERIES
from tests.house.pages import ROOT, page, rows


def test_demo_is_shown_as_it_was_written() -> None:
    written = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    table, _, specs = written.strip().split("\n\n")
    assert table in page("demonstration.md").text
    assert specs in page("demonstration.md").text
    with Image.open(ROOT / "docs" / "demo.png") as picture:
        assert picture.text["Description"] == specs
    assert (ROOT / "docs" / "demo.png").stat().st_size < 300_000


def test_demo_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    for name in ("demo", "demo_picture", "demo_table"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    variants = importlib.import_module("demo").VARIANTS
    text = page("demonstration.md").text
    assert [row[0] for row in rows(text)] == list(variants)
    shown = dict(re.findall(r"^- ([a-z0-9_ ]+): (.*)$", text, re.MULTILINE))
    assert {name: re.findall("`(.*?)`", specs) for name, specs in shown.items()} == {
        name: specs for name, specs in variants.items() if specs
    }


def test_deliveries_are_all_there() -> None:
    table = rows(page("deliveries.md").text)
    named = [re.findall(r'`"(\w+)"`', row[0]) for row in table]
    assert sorted(name for (name,) in named) == sorted(DELIVERIES)


def test_selections_are_ones_that_are_accepted() -> None:
    model = nn.ModuleDict({"encoder": nn.ModuleDict({"embed": nn.Embedding(3, 2)})})
    model["head"] = nn.Linear(2, 2)
    for row in rows(page("selections.md").text):
        (where,) = re.findall(r"^`(.*?)`", row[0])
        where = where.replace("…", "name == 'head.bias'")
        assert regplug.Selection(eval(where)).of(model)


def test_schedules_are_written_as_they_are() -> None:
    text = page("schedules.md").text
    for name in ("constant", "linear", "cosine", "exponential", "warmup"):
        form = f"{name}({', '.join(inspect.signature(getattr(schedules, name)).parameters)})"
        assert f"`{form}`" in text
    assert "`piecewise({step: value})`" in text


def test_every_built_in_is_named() -> None:
    text = page("plugins.md").text
    ours = [offer.name for offer in catalog.offers() if offer.source.startswith("regplug ")]
    assert len(ours) > 5
    assert [name for name in ours if not re.search(rf"`{name}\b", text)] == []


def test_every_error_is_explained() -> None:
    explained = {}
    for row in rows(page("errors.md").text):
        name, *bases = re.findall("`(.*?)`", row[0])
        explained[name] = bases
    assert set(explained) == set(errors.__all__) - {"RegplugError"}
    for name, bases in explained.items():
        cls = getattr(errors, name)
        assert bases == [b.__name__ for b in cls.__bases__ if b is not errors.RegplugError]
