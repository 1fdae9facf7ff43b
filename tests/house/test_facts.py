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
from regplug.testing import CHECKS
from tests.house.pages import ROOT, Page, page, rows
from tests.matrix import cells

WORDS = {"ten": 10, "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "twenty": 20}
TENS = {"fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80}


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


def test_figures_of_the_front_page_are_those_of_the_pages_that_it_names() -> None:
    front = Page(ROOT / "README.md").text
    (held,) = re.findall(r"cells: (\d+) hold, 0 fail", page("matrix.md").text)
    (agree,) = re.findall(r"([\d,]+) cells of plugin × regime agree", front)
    assert agree.replace(",", "") == held
    (told,) = re.findall(r"the same (\w+) checks", front)
    assert TENS[told] == len(CHECKS) // 10 * 10
    codes = re.findall(r"^### ([\w-]+)$", page("doctor.md").text, re.MULTILINE)
    named = ("decayed-twice", "clipped-away", "detached-penalty", "scaled-by-accumulation")
    assert set(named) <= set(codes)
    (more,) = re.findall(r"\[(\w+) more\]\(docs/doctor.md\)", front)
    assert WORDS[more] == len(codes) - len(named)


def test_versions_of_the_front_page_are_those_that_were_tried() -> None:
    tried = [row for row in rows(page("versions.md").text) if row[1][0].isdigit()]
    told = []
    for column in (1, 2):
        found = {tuple(map(int, row[column].split("+")[0].split(".")[:2])) for row in tried}
        told += [".".join(map(str, each)) for each in (min(found), max(found))]
    front = Page(ROOT / "README.md").text
    assert "Python {} to {}, torch {} to {}".format(*told) in front


def test_the_matrix_has_a_row_for_each_plugin_and_delivery() -> None:
    shown = [row[0] for row in rows(page("matrix.md").text)]
    ours = [offer.name for offer in catalog.offers() if offer.source.startswith("regplug ")]
    expected = [str(row) for row in cells.rows() if row.plugin in ours]
    assert shown == expected, "make matrix writes them"
    elsewhere = {name for name in ours if catalog.load_class(name).exam_model is not None}
    told = page("matrix.md").text.partition("want a model of their own (")[2].partition(")")[0]
    assert set(re.findall(r"`(\w+)`", told)) == elsewhere


def test_what_is_public_is_what_the_reference_has() -> None:
    public = page("stability.md").section("What is public")
    named = set(re.findall(r"`(regplug[\w.]*)(?:\.\*)?`", public)) - {"regplug.sessions.on"}
    titles = {p.read_text("utf-8").split("\n")[0][2:] for p in (ROOT / "docs" / "api").glob("*.md")}
    assert titles - {"For authors of plugins", "regplug.strengths"} == {
        name for name in named if name != "regplug.strengths.per_layer"
    }
    assert re.findall(r":: regplug\.strengths\.(\w+)", page("api/strengths.md").text) == [
        "per_layer"
    ]


def test_the_contract_is_described_at_its_version() -> None:
    told = re.findall(r"(\d\.\d) (?:came )?with (\d\.\d\.\d)", page("stability.md").text)
    assert [told[-1][0], told[-1][1]] == [regplug.hookspecs.VERSION, regplug.__version__]
