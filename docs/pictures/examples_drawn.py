"""Pictures of the gallery: what the scripts of ``examples/`` find, run again or off the page."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import problems
import torch
from matplotlib.figure import Figure
from panels import AFTER, BEFORE, COLORS, THIRD, card, matrix, told
from torch import Tensor
from torch.utils.data import TensorDataset

ROOT = Path(__file__).parents[2]
Drawn = tuple[Figure, Sequence[str]]


def example(name: str) -> Any:
    """Return a script of ``examples/`` as a module, without running it."""
    if (folder := str(ROOT / "examples")) not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def table(heading: str) -> list[list[str]]:
    """Return the rows below a heading of the gallery."""
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[2:]]


def number(cell: str) -> float:
    """Return the first number of a cell."""
    return float(re.findall(r"\d+\.?\d*", cell)[0])


def regression() -> Drawn:
    """Weights of each input, and errors, of five seeds."""
    script = example("regression")
    variants = {"none": [], "l1": ["l1(0.003)"], "l1 and l2": ["l1(0.003)", "l2(0.003)"]}
    figure, (inputs, errors) = card(widths=[1.5, 1])
    for k, (name, specs) in enumerate(variants.items()):
        rows, losses = [], []
        for seed in range(1 if problems.QUICK else 5):
            torch.manual_seed(seed)
            mapping = torch.randn(3, 10)
            known, new = script.samples(60, mapping), script.samples(1000, mapping)
            model, session = script.train(*known, specs, problems.steps(100))
            session.detach()
            rows.append(model[0].weight.detach().abs().mean(0))
            with torch.no_grad():
                losses.append([float((model(x) - y).square().mean()) for x, y in (known, new)])
        color = (BEFORE, AFTER, THIRD)[k]
        places = torch.arange(1, 11) + 0.26 * (k - 1)
        inputs.bar(places, torch.stack(rows).mean(0), width=0.24, color=color, label=name)
        fit, test = torch.tensor(losses).mean(0).tolist()
        errors.bar([0.26 * (k - 1), 1 + 0.26 * (k - 1)], [fit, test], width=0.24, color=color)
    inputs.set_xticks(range(1, 11))
    told(inputs, "mean |w| of each input: the first three matter", "input")
    errors.set_xticks([0, 1], ["60 known", "1000 new"])
    told(errors, "mean squared error")
    return figure, [spec for specs in variants.values() for spec in specs]


def images() -> Drawn:
    """The weights of the widest layer, and zeros in each, of one seed."""
    from sklearn.datasets import load_digits

    script, data = example("images"), load_digits()
    x = torch.tensor(data.images[:300], dtype=torch.float32)[:, None] / 16
    known = TensorDataset(x, torch.tensor(data.target[:300]))
    epochs = 1 if problems.QUICK else 40
    specs = ["l1(1e-3, delivery='proximal')", "dropout(linear(0.3, 0, steps=400))"]
    figure, (plain, sparse, shares) = card(3, widths=[1.3, 1.3, 1])
    for axes, name, plugins in ((plain, "plain", []), (sparse, "regularized", specs)):
        torch.manual_seed(0)
        model, _ = script.train(known, epochs, plugins)
        weights = [p.detach() for p in model.parameters() if p.ndim > 1]
        matrix(axes, blank(weights[2]), f"{name}: 64 units, 128 inputs", most=0.2, aspect="auto")
    zeros = [100 * float((w == 0).float().mean()) for w in weights]
    shares.bar(range(4), zeros, color=AFTER)
    shares.set_xticks(range(4), ["conv 1", "conv 2", "linear 1", "linear 2"], rotation=30)
    told(shares, "% exact zeros, regularized")
    return figure, specs


def blank(w: Tensor) -> Any:
    """Return a matrix whose exact zeros are told from small weights: they are grey."""
    return w.masked_fill(w == 0, float("nan")).numpy()


def language_model() -> Drawn:
    """Bits per character, as they stand on the page."""
    rows = [
        [number(cell) for cell in row] for row in table("A language model: decay where it belongs")
    ]
    steps, *columns = zip(*rows, strict=True)
    figure, pair = card()
    names = ("plain AdamW", "regularized")
    titles = {"text that it has seen": (0, 2), "new text": (1, 3)}
    for axes, (title, shown) in zip(pair, titles.items(), strict=True):
        for name, color, column in zip(names, (BEFORE, AFTER), shown, strict=True):
            axes.plot(steps, columns[column], color=color, marker="o", label=name)
        told(axes, title, "step", "bits per character")
    return figure, [
        "weight_decay(0.1, where=['weights', '!*embedding*'], existing='replace')",
        "dropout(linear(0.3, 0, steps=800))",
    ]


def speakers() -> Drawn:
    """The recurrent weights of the first layer, without and with the penalties, of one seed."""
    from aeon.datasets import load_japanese_vowels

    script = example("speakers")
    series, who = load_japanese_vowels(split="train")
    utterances = [torch.tensor(frames.T, dtype=torch.float32) for frames in series]
    frames = torch.cat(utterances)
    known = [(u - frames.mean(0)) / frames.std(0) for u in utterances]
    labels = torch.tensor([int(label) - 1 for label in who])
    figure, pair = card()
    for axes, name, specs in zip(pair, ("plain", "sparse"), ([], script.SPARSE), strict=True):
        torch.manual_seed(0)
        model, _ = script.train(known, labels, specs, 1 if problems.QUICK else 20)
        w = model.gru.weight_hh_l0.detach()
        gone = 100 * float((w == 0).float().mean())
        matrix(
            axes,
            blank(w.T),
            f"{name}: 64 units × 3 gates, {gone:.0f} % are 0",
            most=0.15,
            aspect="auto",
        )
    return figure, script.SPARSE


def sharded() -> Drawn:
    """Accuracy and zeros, as they stand on the page."""
    rows = table("One process or many")
    figure, pair = card()
    names = [row[0] for row in rows]
    for axes, title, column in zip(pair, ("accuracy, %", "exact zeros, %"), (1, 2), strict=True):
        axes.barh(names, [number(row[column]) for row in rows], color=[BEFORE, *COLORS[:3]])
        axes.invert_yaxis()
        told(axes, title)
    pair[1].set_yticklabels([])
    return figure, []


def third_party() -> Drawn:
    """Value and pull of the plugin of the package, beside those of l1."""
    folder = str(ROOT / "examples" / "third_party_plugin")
    if folder not in sys.path:
        sys.path.append(folder)
    penalty = importlib.import_module("regplug_log_sum").LogSum(1.0)
    w = torch.linspace(-1, 1, 401, requires_grad=True)
    values = torch.stack([penalty.value(element[None]) for element in w])
    (pull,) = torch.autograd.grad(values.sum(), w)
    figure, (value, gradient) = card()
    seen = w.detach()
    value.plot(seen, seen.abs(), color=BEFORE, label="l1")
    value.plot(seen, values.detach() / values.detach().max(), color=AFTER, label="log_sum, scaled")
    told(value, "value of one weight", "w")
    gradient.plot(seen, seen.sign(), color=BEFORE, label="l1")
    gradient.plot(seen, pull / pull.abs().max(), color=AFTER, label="log_sum, scaled")
    told(gradient, "pull on it", "w")
    return figure, ["log_sum(1.0)"]


PICTURES: dict[str, Callable[[], Drawn]] = {
    f"example_{draw.__name__}": draw
    for draw in (regression, images, language_model, speakers, sharded, third_party)
}
