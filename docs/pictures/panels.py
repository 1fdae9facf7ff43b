"""The frame that all pictures share: a white card, few colours, one idea in a panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

BEFORE, AFTER, THIRD, FOURTH = "#8a94a0", "#c8553d", "#2f6690", "#3a7d44"
COLORS = (AFTER, THIRD, FOURTH, "#8d6a9f")

STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.facecolor": "white",
    "font.size": 9,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def card(count: int = 2, *, widths: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels beside each other."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 2.9), layout="constrained")
        axes = figure.subplots(1, count, squeeze=False, width_ratios=widths)[0]
    return figure, list(axes)


def told(axes: Axes, title: str, x: str = "", y: str = "", legend: str | None = "best") -> None:
    """Say what a panel shows."""
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if legend is not None and axes.get_legend_handles_labels()[0]:
        axes.legend(loc=legend)


def histogram(axes: Axes, weights: Mapping[str, Tensor], *, limit: float = 0.6) -> None:
    """Draw how often weights of each size are, on a logarithmic scale."""
    edges = np.linspace(-limit, limit, 60)
    for (label, w), color in zip(weights.items(), (BEFORE, *COLORS), strict=False):
        axes.hist(
            w.detach().flatten().clamp(-limit, limit).numpy(),
            bins=edges,
            histtype="stepfilled" if color == BEFORE else "step",
            color=color,
            alpha=0.45 if color == BEFORE else 1,
            linewidth=1.6,
            label=label,
        )
    axes.set_yscale("log")


def images(axes: Axes, w: Tensor, title: str, *, rows: int = 3, columns: int = 3) -> None:
    """Draw rows of 64 weights as 8×8 pixels: red below 0, blue above, white at exactly 0."""
    chosen = w.detach()[: rows * columns].unflatten(1, (8, 8)).numpy()
    gap = np.full((rows * 9 - 1, columns * 9 - 1), np.nan)
    for i, image in enumerate(chosen):
        down, right = divmod(i, columns)
        gap[down * 9 : down * 9 + 8, right * 9 : right * 9 + 8] = image
    matrix(axes, gap, title, most=float(np.nanquantile(np.abs(chosen), 0.99)) or 1.0)


def matrix(axes: Axes, w: Any, title: str, *, most: float, aspect: str = "equal") -> None:
    """Draw a matrix, from −``most`` to ``most``."""
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    colors = mpl.colormaps["RdBu"].with_extremes(bad="#e4e4e4")
    axes.imshow(w, cmap=colors, vmin=-most, vmax=most, interpolation="nearest", aspect=aspect)
