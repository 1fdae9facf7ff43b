"""The findings of papers that are tried again: the scripts run, and the page says what came out."""

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import regplug
from tests.helpers.generated import written
from tests.house.pages import DOCS, ROOT, rows

PAPERS = ROOT / "examples" / "papers"
SCRIPTS = ("grokking.py", "decoupling.py", "early_dropout.py")
HELPERS = ("paper", "stacked", "run")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    names = [*(Path(script).stem for script in SCRIPTS), *HELPERS]
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(PAPERS))
    yield {name: importlib.import_module(name) for name in names}
    for name in set(names) - before:
        del sys.modules[name]


def shown(script: str) -> tuple[str, list[list[str]]]:
    """Return the table of a paper as the page shows it, and its rows."""
    text = written(DOCS / "papers.md", f"make papers PAPERS={Path(script).stem}")
    return text, rows(text)


def number(cell: str) -> float:
    return float(cell.split(maxsplit=1)[0].replace(",", ""))


def test_all_of_them_run_in_their_quick_form_and_fill_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    marks = [f"<!-- written by `make papers PAPERS={Path(s).stem}` -->" for s in SCRIPTS]
    page.write_text("\n".join(f"{mark}\n<!-- until here -->\n" for mark in marks), "utf-8")
    command = [sys.executable, "-W", "error", str(PAPERS / "run.py"), "--quick"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--page", str(page)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for script in SCRIPTS:
        name = Path(script).stem
        text = written(page, f"make papers PAPERS={name}")
        table, _, seconds = text.partition("\n\n")
        assert re.fullmatch(r"\d+ seconds of one core\.", seconds)
        assert text in done.stdout
        # The same rows, columns and plugins as in the page that is published.
        there, _ = shown(script)
        assert [row[0] for row in rows(table)] == [row[0] for row in rows(there)]
        assert _head(table) == _head(there)
        with Image.open(tmp_path / f"papers_{name}.png") as picture:
            assert picture.text["Description"] == table
            assert picture.width > 900


def _head(table: str) -> list[str]:
    return [cell.strip() for cell in table.splitlines()[0].strip("|").split("|")]


def test_every_paper_is_run_and_named(scripts: dict[str, ModuleType]) -> None:
    named = [f"{paper}.py" for paper in scripts["run"].PAPERS]
    assert named == list(SCRIPTS)
    assert {path.name for path in PAPERS.glob("*.py")} == {
        *named,
        "run.py",
        "paper.py",
        "stacked.py",
    }
    (default,) = re.findall(
        r"^PAPERS \?= (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE
    )
    assert default.split() == list(scripts["run"].PAPERS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_picture_belongs_to_the_table_that_is_shown(script: str) -> None:
    text, _ = shown(script)
    path = DOCS / f"papers_{Path(script).stem}.png"
    assert path.stat().st_size < 200_000
    with Image.open(path) as picture:
        assert picture.text["Description"] == text.partition("\n\n")[0]
    (seconds,) = map(int, re.findall(r"^(\d+) seconds of one core\.$", text, re.MULTILINE))
    assert seconds < 600


def test_an_unknown_paper_is_refused() -> None:
    command = [sys.executable, str(PAPERS / "run.py"), "groking"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no such paper: groking; there is grokking, " in done.stderr


# --- what they rest on -------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["weight_decay(0.5)", "l2(0.01, delivery='loss')"])
def test_a_network_of_a_stack_trains_as_if_it_were_alone(
    scripts: dict[str, ModuleType], spec: str
) -> None:
    stacked = scripts["stacked"]
    seeds = [3, 8]
    x, y = torch.randn(2, 12, 4), torch.randint(3, (2, 12))
    together = nn.Sequential(
        stacked.Linear(seeds, 4, 6), nn.ReLU(), stacked.Linear([s + 1 for s in seeds], 6, 3)
    )
    alone = [nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)) for _ in seeds]
    for i, model in enumerate(alone):
        for k in (0, 2):
            model[k].weight.data = together[k].weight.data[i].T.clone()
            model[k].bias.data = together[k].bias.data[i, 0].clone()
    optimizer = torch.optim.Adam(together.parameters(), lr=0.05)
    # A stack's biases are matrices, too, and decay with it.
    with regplug.attach(together, optimizer, [spec]) as session:
        for _ in range(20):
            optimizer.zero_grad()
            session.loss(stacked.losses(together(x), y).sum()).backward()
            optimizer.step()
    for i, model in enumerate(alone):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(20):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[i]), y[i])
            if spec.startswith("l2"):
                loss = loss + 0.01 * sum(p.square().sum() for p in model.parameters())
            loss.backward()
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1 - 0.05 * 0.5 if spec.startswith("weight_decay") else 1)
            optimizer.step()
        for k in (0, 2):
            torch.testing.assert_close(together[k].weight[i].T, model[k].weight)
            torch.testing.assert_close(together[k].bias[i, 0], model[k].bias)
        error = 100 * (model(x[i]).argmax(1) == y[i]).float().mean()
        assert stacked.accuracies(together(x), y)[i] == pytest.approx(float(error))


def test_a_stack_starts_as_torch_does(scripts: dict[str, ModuleType]) -> None:
    layer = scripts["stacked"].Linear([0, 1], 64, 200)
    for p in (layer.weight, layer.bias):
        assert p.abs().max() <= 1 / 8
        assert p.abs().max() > 0.99 / 8
    assert not torch.equal(layer.weight[0], layer.weight[1])
    assert torch.equal(layer.weight[1], scripts["stacked"].Linear([1], 64, 200).weight[0])


def test_pairs_to_judge_by_are_not_trained_on(scripts: dict[str, ModuleType]) -> None:
    known, others = scripts["grokking"].pairs([0, 1])
    for a, b in zip(known, others, strict=True):
        assert len({tuple(pair) for pair in torch.cat([a, b]).tolist()}) == 31 * 31
    assert not torch.equal(known[0], known[1])


def test_adder_is_a_network_on_one_hot_numbers(scripts: dict[str, ModuleType]) -> None:
    model = scripts["grokking"].Adder([5])
    pairs = torch.tensor([[[3, 7], [30, 0]]])
    left, right = (F.one_hot(pairs[0, :, i], 31).float() for i in (0, 1))
    hidden = (torch.cat([left, right], 1) @ torch.cat([model.left[0], model.right[0]])).relu()
    torch.testing.assert_close(model(pairs)[0], hidden @ model.out[0])


def test_coupling_is_told_by_known_surfaces(scripts: dict[str, ModuleType]) -> None:
    decoupling = scripts["decoupling"]
    rates = torch.tensor(decoupling.RATES).log()[:, None, None]
    grid = [2.0**k for k in range(-10, 5)]
    strengths = torch.tensor(grid).log()[None, :, None]
    for power in (0.0, 1.0, -1.0):
        center = power * (rates - rates.mean())
        errors = (strengths - center - torch.tensor(grid[7]).log()).square().expand(-1, -1, 3)
        found = decoupling.slopes(errors, grid)
        assert found.tolist() == pytest.approx([power] * 3, abs=1e-4)
        _, lost = decoupling.forgone(errors)
        assert (lost < 1e-6) == (power == 0)


# --- what the page says ------------------------------------------------------------------------


def test_page_on_grokking_says_what_the_table_says() -> None:
    _, table = shown("grokking.py")
    by_plugin = {row[0].strip("`"): row[1:] for row in table}
    without, weak, middle, strong, excessive = by_plugin.values()
    assert next(iter(by_plugin)) == "weight_decay(0)"
    assert without[1:3] == excessive[1:3] == ["never", "0 of 5"]
    assert weak[2] == "3 of 5"
    assert middle[2] == strong[2] == "5 of 5"
    assert number(weak[1]) > number(middle[1]) > number(strong[1])
    assert all(number(row[0]) <= 100 for row in by_plugin.values())
    delays = [number(row[1]) / number(row[0]) for row in (weak, middle, strong)]
    assert 16.5 <= min(delays) <= max(delays) <= 71.5


def test_page_on_decoupling_says_what_the_table_says() -> None:
    _, (_, l2, decay, torchs) = shown("decoupling.py")
    assert abs(number(l2[2])) < 0.15 < abs(number(torchs[2])) < 0.5 < number(decay[2])
    assert number(l2[4]) < number(torchs[4]) < number(decay[4])
    assert number(l2[1]) <= min(number(decay[1]), number(torchs[1]))


def test_page_on_early_dropout_says_what_the_table_says() -> None:
    _, table = shown("early_dropout.py")
    cells = {row[0].partition(":")[0]: row[1:] for row in table}
    loss = {name: number(row[0]) for name, row in cells.items()}
    assert loss["underfitting, early"] < 0.6 * loss["underfitting, none"]
    assert loss["underfitting, standard"] > loss["underfitting, none"]
    standard, early, late = (
        number(cells[f"overfitting, {name}"][3]) for name in ("standard", "early", "late")
    )
    assert standard < late < -2 < early < -1


def test_page_shows_the_plugins_that_are_run(scripts: dict[str, ModuleType]) -> None:
    _, table = shown("grokking.py")
    strengths = [f"`weight_decay({s:g})`" for s in scripts["grokking"].STRENGTHS]
    assert [row[0] for row in table] == strengths
    _, table = shown("early_dropout.py")
    variants = [
        f"{regime.name}, {name}: `{spec}`"
        for regime in scripts["early_dropout"].REGIMES
        for name, spec in regime.variants.items()
    ]
    assert [row[0] for row in table] == variants
