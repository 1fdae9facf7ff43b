"""The picture of demo.py: six panels of one set of runs."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from demo import Run

Results = dict[str, "list[Run]"]
Colors = dict[str, str]

# After Okabe and Ito: colour-blind readers can tell them apart.
COLORS = ["#333333", "#E69F00", "#D55E00", "#CC79A7", "#009E73", "#0072B2", "#56B4E9"]

STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def draw(
    results: Results, differences: dict[str, tuple[float, float]], specs: str, path: Path
) -> None:
    """Draw all panels into ``path``; ``specs`` goes into the file's description."""
    colors = dict(zip(results, COLORS, strict=True))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13.5, 8.2), layout="constrained")
        rows = figure.subfigures(2, 1)
        top = rows[0].subfigures(1, 3, width_ratios=[1.15, 1, 1])
        bottom = rows[1].subfigures(1, 3, width_ratios=[1.15, 1, 1])
        for part in (*top, *bottom):
            part.set_facecolor("none")
        curves(top[0].add_subplot(), results, colors)
        gains(top[1].add_subplot(), differences, colors)
        over_time(top[2].subplots(2, 1, sharex=True, height_ratios=[1.4, 1]), results, colors)
        histograms(bottom[0].add_subplot(), results, colors)
        zeros(bottom[1].add_subplot(), results, colors)
        pixels(bottom[2], results)
        figure.savefig(path, dpi=100, metadata={"Description": specs, "Software": None})


def curves(axes: Axes, results: Results, colors: Colors) -> None:
    """Accuracy on test images, once they have parted."""
    steps = results["plain"][0].steps
    tests = {name: np.mean([r.test for r in runs], axis=0) for name, runs in results.items()}
    for name, test in tests.items():
        axes.plot(steps, test, color=colors[name], label=name, lw=2.4 if name == "plain" else 1.5)
    # The first steps, alike for all, would take the space in which they differ.
    settled = np.array(steps) >= steps[-1] / 6
    low = min(float(test[settled].min()) for test in tests.values())
    high = max(float(test[settled].max()) for test in tests.values())
    axes.set(title="Accuracy on test images", xlabel="step", ylabel="%, mean over seeds")
    axes.set(xlim=(steps[-1] / 6, steps[-1]), ylim=(low - 0.35 * (high - low), high + 0.2))
    axes.legend(loc="lower right", ncols=3)
    train = float(np.mean([r.train[-1] for r in results["plain"]]))
    axes.text(
        *(0.02, 0.98, f"on its training images plain has {train:.0f} %"),
        transform=axes.transAxes,
        va="top",
        color="#444444",
    )


def gains(axes: Axes, differences: dict[str, tuple[float, float]], colors: Colors) -> None:
    """What each variant gained over plain, with its uncertainty."""
    names = list(differences)
    axes.axvline(0, color=colors["plain"], lw=1.5)
    for y, name in enumerate(names):
        center, half = differences[name]
        axes.errorbar(center, y, xerr=half, fmt="o", ms=7, capsize=3, lw=2, color=colors[name])
        shown = f"{round(center, 1) + 0.0:+.1f}"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(center, y - 0.22, shown, ha="center", va="bottom", fontsize=8.5, bbox=box)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Gained over plain")
    axes.set_xlabel("percentage points of test accuracy, 95 % intervals")


def over_time(pair: np.ndarray, results: Results, colors: Colors) -> None:
    """Strengths and dropout rates as the sessions reported them."""
    strengths, rates = pair
    dashes = {"l1 proximal": (0, (4, 4)), "combination": (0, (4, 4))}  # may lie on another's line
    for name, runs in results.items():
        for key, values in runs[0].scheduled.items():
            axes = rates if key.endswith("/rate") else strengths
            style = dashes.get(name, "-")
            axes.plot(runs[0].steps, values, color=colors[name], lw=1.8, ls=style, label=name)
    strengths.set(title="Strength and dropout over time", ylabel="strength λ", yscale="log")
    strengths.set_ylim(5e-5, 1)
    strengths.legend(loc="upper right", ncols=2)
    rates.set(xlabel="step", ylabel="dropout rate", ylim=(0, None))
    rates.set_xlim(0, results["plain"][0].steps[-1])
    rates.legend(loc="upper right")


def histograms(axes: Axes, results: Results, colors: Colors) -> None:
    """How large the weights are that are not 0."""
    edges = np.linspace(-0.4, 0.4, 81)
    for name in ("plain", "l2", "l1", "l1 proximal"):
        weights = torch.cat([w.flatten() for r in results[name] for w in r.weights])
        counts, _ = np.histogram(weights[weights != 0].numpy(), edges)
        shown = 100 * counts / len(weights)
        label = f"{name}: {mean(r.zeros for r in results[name]):.0f} % are 0"
        if name == "plain":
            axes.stairs(shown, edges, color="#CCCCCC", fill=True, label=label)
        else:
            axes.stairs(shown, edges, color=colors[name], lw=1.6, label=label)
    axes.set(title="The weights that are not exactly 0", xlabel="weight")
    axes.set(ylabel="% of all weights, per 0.01", yscale="log")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(2e-3, 2e2)
    axes.legend(loc="upper left")


def zeros(axes: Axes, results: Results, colors: Colors) -> None:
    """Share of exact zeros in each layer, of those that have any."""
    shares = {
        name: [
            100 * mean(float((r.weights[i] == 0).float().mean()) for r in runs) for i in range(3)
        ]
        for name, runs in results.items()
    }
    some = {name: layers for name, layers in shares.items() if max(layers) >= 0.5}
    width = 0.8 / max(1, len(some))
    for k, (name, layers) in enumerate(some.items()):
        places = [x + (k - (len(some) - 1) / 2) * width for x in range(3)]
        bars = axes.bar(places, layers, 0.92 * width, color=colors[name], label=name)
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=9)
    shapes = [" × ".join(map(str, reversed(w.shape))) for w in results["plain"][0].weights]
    axes.set_xticks(range(3), [f"layer {i + 1}\n{shape}" for i, shape in enumerate(shapes)])
    axes.set(title="Exact zeros in each layer", ylabel="% of its weights", ylim=(0, 119))
    axes.set_yticks(range(0, 101, 25))
    none = ", ".join(name for name in shares if name not in some)
    axes.legend(loc="upper left", ncols=2, title=f"none in: {none}", title_fontsize=8.5)
    axes.tick_params(axis="x", length=0)


def pixels(figure: Figure, results: Results) -> None:
    """How much weight each pixel of the 8×8 image has in the first layer."""
    names = ("plain", "l1", "l1 proximal", "combination")
    sums = {
        name: torch.stack([r.weights[0].abs().mean(0) for r in results[name]]).mean(0)
        for name in names
    }
    largest = max(float(s.max()) for s in sums.values())
    cells = figure.subplots(2, 2)
    for axes, name in zip(cells.flat, names, strict=True):
        shown = axes.imshow(sums[name].reshape(8, 8).numpy(), cmap="magma", vmin=0, vmax=largest)
        axes.set_title(name, fontweight="normal", fontsize=9.5, loc="center", pad=4)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    figure.colorbar(shown, ax=cells, shrink=0.9, label="mean |w|")
    figure.suptitle(
        "Weight of each pixel in layer 1", fontsize=11, fontweight="bold", x=0.02, ha="left"
    )
