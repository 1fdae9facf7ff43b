"""The picture of a recorded run. Needs matplotlib, of the extra ``plots``."""

from itertools import pairwise
from pathlib import Path
from typing import Any

from regplug.report.measures import Histogram, Record

__all__ = ["draw"]

_BEFORE, _AFTER = "#9aa5b1", "#c8553d"
_LINES = ("#2f6690", "#c8553d", "#3a7d44", "#8d6a9f", "#d9a441", "#4f5d75", "#b56576", "#6c9a8b")
_RATES = ("strength", "rate", "factor")


def draw(record: Record, path: Path) -> None:
    """Draw the objective's parts, strengths, zeros, norms and histograms of ``record``.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: ``path`` can't be written.
    """
    # Not pyplot, which would touch the program's own figures and backend.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 3)
    panels = [figure.add_subplot(grid[0, column]) for column in range(3)]
    panels += [figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1:])]
    session = record.session
    figure.suptitle(
        f"{session.name}: {', '.join(p.name for p in session.plugins) or 'no plugins'}, "
        f"{session.steps:,} steps"
    )
    _objective(panels[0], record)
    _strengths(panels[1], record)
    _layers(panels[2], record, "zeros")
    _layers(panels[3], record, "norm")
    _histograms(panels[4], record)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25, linewidth=0.6)
    figure.savefig(path, dpi=120, format="png")


def _series(record: Record, key: str) -> tuple[list[float], list[float]]:
    rows = [row for row in record.rows if key in row]
    return [row["step"] for row in rows], [row[key] for row in rows]


def _keys(record: Record) -> list[str]:
    return [key for key in dict.fromkeys(k for row in record.rows for k in row) if key != "step"]


def _plot(panel: Any, record: Record, keys: list[str], labels: list[str]) -> None:
    for place, (key, label) in enumerate(zip(keys, labels, strict=True)):
        steps, values = _series(record, key)
        panel.plot(steps, values, color=_LINES[place % len(_LINES)], label=label, linewidth=1.8)
    if keys:
        panel.legend(frameon=False, fontsize=9)
    else:
        panel.text(0.5, 0.5, "nothing to show", ha="center", transform=panel.transAxes)
    panel.set_xlabel("step")


def _objective(panel: Any, record: Record) -> None:
    keys = _keys(record)
    parts = [k for k in keys if k.endswith("/value")] + [k for k in keys if "/" not in k]
    _plot(panel, record, parts, [key.removesuffix("/value") for key in parts])
    values = [value for key in parts for value in _series(record, key)[1]]
    if values and min(values) > 0 and max(values) > 20 * min(values):
        panel.set_yscale("log")
    panel.set_title("parts of the objective")


def _strengths(panel: Any, record: Record) -> None:
    keys = [key for key in _keys(record) if key.rpartition("/")[2].endswith(_RATES)]
    labels = [key.removesuffix("/strength") for key in keys]
    _plot(panel, record, keys, labels)
    values = [value for key in keys for value in _series(record, key)[1]]
    panel.set_ylim(0, 1.25 * max(values, default=0.8) or 1)
    panel.ticklabel_format(axis="y", scilimits=(-3, 4))
    # Strengths of 1e-5 and rates of 0.5 share the panel.
    if values and min(values) >= 0 and max(values) > 50 * (min(v for v in [*values, 1] if v > 0)):
        panel.set_yscale("symlog", linthresh=min(v for v in [*values, 1] if v > 0))
    panel.set_title("strengths and rates")


def _layers(panel: Any, record: Record, what: str) -> None:
    from matplotlib import colormaps

    names = list(dict.fromkeys(row.layer for row in record.layers))
    colours = colormaps["viridis"]
    for place, name in enumerate(names):
        rows = [row for row in record.layers if row.layer == name]
        values = [
            100 * row.zeros / max(row.weights, 1) if what == "zeros" else row.norm for row in rows
        ]
        # Many layers: the ends of the colour scale say enough.
        label = name if len(names) <= 8 or place in (0, len(names) - 1) else None
        panel.plot(
            [row.step for row in rows],
            values,
            color=colours(0.85 * place / max(len(names) - 1, 1)),
            label=label,
            linewidth=1.5,
        )
    if names:
        panel.legend(frameon=False, fontsize=8)
    panel.set_xlabel("step")
    panel.set_title("exact zeros per layer, %" if what == "zeros" else "2-norm per layer")
    panel.set_ylim(bottom=0)


def _histograms(panel: Any, record: Record) -> None:
    after = record.after or record.before
    limit = max(_extent(record.before), _extent(after))
    for histogram, colour, label, filled in (
        (record.before, _BEFORE, f"before (step {record.before.step:,})", True),
        (after, _AFTER, f"after (step {after.step:,})", False),
    ):
        edges, counts = _coarse(histogram, limit)
        panel.stairs(
            counts, edges, color=colour, fill=filled, label=label, linewidth=1.6, alpha=0.9
        )
    panel.set_yscale("symlog", linthresh=1)
    panel.set_xlim(-limit, limit)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("weight")
    panel.set_title("weights, before and after (count, log)")
    panel.legend(frameon=False, fontsize=9)


def _extent(histogram: Histogram, share: float = 0.999) -> float:
    """Return how far from 0 the innermost bins reach that hold ``share`` of the weights."""
    counts, middle = histogram.counts, len(histogram.counts) // 2
    total, held = sum(counts), counts[middle]
    width = 2 * histogram.limit / len(counts)
    for away in range(1, middle + 1):
        if held >= share * total:
            return (away + 1.5) * width
        held += counts[middle - away] + counts[middle + away]
    return histogram.limit


def _coarse(histogram: Histogram, limit: float, most: int = 81) -> tuple[list[float], list[int]]:
    """Return at most about ``most`` wider bins within ``limit``, one of them around 0."""
    counts, middle = histogram.counts, len(histogram.counts) // 2
    width = 2 * histogram.limit / len(counts)
    reach = min(middle, round(limit / width))
    together = max(1, 2 * reach // most) | 1  # odd, so that the middle bin stays around 0
    half = together // 2
    bins = range(-((reach + half) // together), (reach + half) // together + 1)
    starts = [middle + b * together - half for b in (*bins, bins[-1] + 1)]
    edges = [(start - middle - 0.5) * width for start in starts]
    return edges, [sum(counts[max(low, 0) : max(high, 0)]) for low, high in pairwise(starts)]
