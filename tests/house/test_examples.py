"""Every example runs to its end in its quick form, without a warning, and does what it says."""

import importlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from scipy.stats import ttest_rel
from torch import nn

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(folder: Path, name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"(?<![\w.])[-+]?\d+\.?\d*(?![\w.]*\d)", text)]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module("demo")
    for name in {"demo", "demo_picture", "demo_table"} - before:
        del sys.modules[name]


# --- each in its quick form --------------------------------------------------------------------


def test_regression(tmp_path: Path) -> None:
    told = run(tmp_path, "regression.py", "--quick")
    rows = dict(re.findall(r"^(none|l\S+\)(?: l\S+\))?) +(\d\.\d+)", told, re.MULTILINE))
    assert list(rows) == ["none", "l1(0.003)", "l2(0.003)", "l1(0.003) l2(0.003)"]
    # What is added to the objective is taken from the fit.
    assert float(rows["none"]) < min(float(rows["l1(0.003)"]), float(rows["l2(0.003)"]))
    assert float(rows["l1(0.003) l2(0.003)"]) == max(map(float, rows.values()))
    assert told.count("loss (auto)") == 2
    assert re.search(r"l1/strength +0.003$", told, re.MULTILINE)


def test_images(tmp_path: Path) -> None:
    told = run(tmp_path, "images.py", "--quick")
    accuracy, zeros = zip(*re.findall(r"accuracy (\S+) %, exact zeros (\d+) %", told), strict=True)
    assert min(map(float, accuracy)) > 30  # of ten digits
    assert int(zeros[0]) == 0 < int(zeros[1])
    assert re.search(r"^l1 .* proximal +4 +13,584 ", told, re.MULTILINE)


def test_language_model(tmp_path: Path) -> None:
    told = run(tmp_path, "language_model.py", "--quick")
    bits = [float(n) for n in re.findall(r"step \d+: (\S+) bits", told)]
    assert len(bits) == 8
    assert bits[3] < bits[0]
    assert bits[7] < bits[4]
    # Two layers with four matrices each, and the head: no norm, bias or embedding.
    assert re.search(r"^weight_decay .* before_step, replacing 0.01 +9 ", told, re.MULTILINE)
    assert re.search(r"^dropout .* 8 dropout rates", told, re.MULTILINE)
    assert "layers.layers.1.self_attn.dropout (own 0)" in told


def test_speakers(tmp_path: Path) -> None:
    told = run(tmp_path, "speakers.py", "--quick")
    accuracy = [float(n) for n in re.findall(r"accuracy (\S+) %", told)]
    assert len(accuracy) == 2
    assert min(accuracy) > 50  # of nine speakers
    zeros = dict(re.findall(r"^(l1_\w+)/zeros: (\d+) %$", told, re.MULTILINE))
    assert set(zeros) == {"l1_input", "l1_recurrent"}
    assert min(map(int, zeros.values())) > 10


def test_demo(tmp_path: Path, demo: ModuleType) -> None:
    told = run(tmp_path, "demo.py", "--quick", "--out", "here")
    rows = re.findall(r"^\| ([a-z]\S*(?: \w+)?) +\|(.*)\|$", told, re.MULTILINE)[1:]
    assert [name for name, _ in rows] == list(demo.VARIANTS)
    cells = {name: [cell.strip() for cell in row.split("|")] for name, row in rows}
    assert cells["plain"][3:] == ["", "0.0", "1.00 ×"]
    assert all(cells[name][4] == "0.0" for name in ("l2", "l1", "weight_decay", "dropout"))
    assert float(cells["l1 proximal"][4]) > 0
    assert all(0.3 < float(row[5].split()[0]) < 30 for row in cells.values())
    assert told.startswith((tmp_path / "here" / "demo.md").read_text(encoding="utf-8"))
    with Image.open(tmp_path / "here" / "demo.png") as picture:
        assert min(picture.size) > 500
        assert picture.text["Description"].count("\n") + 2 == len(demo.VARIANTS)


def test_every_example_is_run_by_a_test() -> None:
    tests = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    scripts = {path.name for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text("utf-8")}
    assert len(scripts) >= 5
    assert {name for name in scripts if f'"{name}"' not in tests} == set()


# --- what they rest on -------------------------------------------------------------------------


def test_regression_trains_as_the_written_out_textbook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "regression", raising=False)
    regression = importlib.import_module("regression")
    torch.set_default_dtype(torch.float64)
    try:
        x, y = torch.randn(60, 10), torch.randn(60, 10)
        torch.manual_seed(1)
        model, _ = regression.train(x, y, ["l1(0.003)", "l2(0.002)"], epochs=100)

        torch.manual_seed(1)
        textbook = nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 10))
        for _ in range(100):
            textbook.zero_grad()
            weights = [textbook[0].weight, textbook[2].weight]
            loss = (textbook(x) - y).square().mean()
            loss = loss + 0.003 * sum(w.abs().sum() for w in weights)
            loss = loss + 0.002 * sum(w.square().sum() for w in weights)
            loss.backward()
            with torch.no_grad():
                for p in textbook.parameters():
                    p.sub_(0.3 * p.grad)
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(model.parameters(), textbook.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_demo_judges_by_images_that_chose_and_trained_nothing(demo: ModuleType) -> None:
    tests = set()
    for seed in (0, 1, 1000):
        train, held_out, test = (set(part.tolist()) for part in demo.split(seed))
        assert len(train | held_out | test) == len(train) + len(held_out) + len(test) == 1797
        tests.add(frozenset(test))
    assert len(tests) == 1


def test_demo_starts_all_variants_alike(demo: ModuleType) -> None:
    plain, _, session = demo.start(demo.VARIANTS["plain"], 3)
    assert session is None
    for specs in demo.VARIANTS.values():
        model, optimizer, _ = demo.start(specs, 3)
        assert optimizer.defaults["weight_decay"] == 0
        for a, b in zip(plain.parameters(), model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_demo_runs_repeat(demo: ModuleType) -> None:
    specs = demo.VARIANTS["combination"]
    a, b = demo.run(specs, 0, 30), demo.run(specs, 0, 30)
    assert a.test == b.test
    assert all(torch.equal(x, y) for x, y in zip(a.weights, b.weights, strict=True))
    assert a.scheduled == b.scheduled
    assert a.scheduled["l1/strength"][:2] == [0, pytest.approx(1e-3 * 20 / 200)]
    assert a.scheduled["dropout/rate"][0] == 0.3


def test_demo_states_the_paired_interval(demo: ModuleType) -> None:
    runs = [
        [demo.Run(nn.Sequential(), test=[accuracy]) for accuracy in accuracies]
        for accuracies in ([81.0, 83.5, 80.2, 84.4], [80.1, 83.6, 79.0, 82.2])
    ]
    center, half = demo.against(*runs)
    low, high = ttest_rel(*([r.test[-1] for r in rs] for rs in runs)).confidence_interval(0.95)
    assert center - half == pytest.approx(low)
    assert center + half == pytest.approx(high)


@pytest.mark.slow
def test_demo_in_full_takes_under_two_minutes(tmp_path: Path) -> None:
    began = time.perf_counter()
    told = run(tmp_path, "demo.py")
    assert time.perf_counter() - began < 120
    # The accuracies repeat where the arithmetic does; the times never do.
    shown = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    for line, before in zip(told.splitlines(), shown.splitlines(), strict=False):
        if "×" in line and line.startswith("|"):
            for a, b in zip(numbers(line)[:-1], numbers(before)[:-1], strict=True):
                assert a == pytest.approx(b, abs=1.5)
