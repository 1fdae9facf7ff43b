"""The pictures of a search: score against strength, and coefficients against strength."""

import itertools
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from regplug.errors import SpecError, UnsupportedError
from regplug.tune.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes


__all__ = ["plot_coefficients", "plot_scores"]

_BEST, _ONE_SE, _POINT, _BAR = "#c0392b", "#1f618d", "#2c3e50", "#aab7b8"


def plot_scores(search: Results, ax: "Axes | None" = None) -> "Axes":
    """Draw the mean score of each strength, with its standard error; of two, a heat map.

    Of one strength: points with bars of one standard error, the best and the one-standard-error
    choice marked, and on top the number of weights that are not zero (a mean over folds), where the
    predictors show their weights. Keys of the grid with one strength only take no part.

    Args:
        search: what a search found.
        ax: where to draw; a new figure if None.

    Returns:
        The axes.

    Raises:
        UnsupportedError: more than two keys vary.
        SpecError: none does.

    References:
        Jerome Friedman, Trevor Hastie, Rob Tibshirani, "Regularization Paths for Generalized
        Linear Models via Coordinate Descent", 2010, https://doi.org/10.18637/jss.v033.i01
        (the picture is that of glmnet's ``plot.cv.glmnet``).
    """
    keys = _varying(search)
    if len(keys) > 2:
        raise UnsupportedError(
            f"plot() shows one or two strengths, and {len(keys)} vary: {', '.join(keys)}; "
            "cv_results_ has them all"
        )
    if not keys:
        raise SpecError("plot() needs a key with two strengths or more, and every key has one")
    ax = _axes() if ax is None else ax
    if len(keys) == 2:
        _heat_map(search, keys, ax)
    else:
        _curve(search, keys[0], ax)
    return ax


def plot_coefficients(
    search: Results, ax: "Axes | None" = None, names: Sequence[str] | None = None
) -> "Axes":
    """Draw each coefficient of a linear model against the strength, a mean over the folds.

    A band shows the range over the folds. Of several outputs each feature's norm is drawn. If
    several keys vary, the strength is the first one's, with the others at their best.

    Args:
        search: what a search found.
        ax: where to draw; a new figure if None.
        names: the features' names, written beside the largest coefficients.

    Returns:
        The axes.

    Raises:
        UnsupportedError: the predictors are no linear models that show their weights.
        SpecError: no strength varies, or ``names`` are not one for each feature.
    """
    keys = _varying(search)
    if not keys:
        raise SpecError("plot_path() needs a key with two strengths or more, and every key has one")
    key, others = keys[0], keys[1:]
    chosen = [
        index
        for index, params in enumerate(search.table["params"])
        if all(params[other] == search.best_params[other] for other in others)
    ]
    chosen.sort(key=lambda index: search.table["params"][index][key])
    found = {(one.candidate, one.fold): one.weights for one in search.outcomes}
    folds = range(search.folds)
    weights = [[found.get((index, fold)) for fold in folds] for index in chosen]
    if any(w is None for row in weights for w in row):
        raise UnsupportedError(
            "plot_path() is for linear models: the predictor must be a module with one weight "
            "matrix, or a callable about one, such as model.forward"
        )
    coefficients = np.array(weights)  # (strengths, folds, [outputs,] features)
    if coefficients.ndim == 4:
        coefficients = np.linalg.norm(coefficients, axis=2)
    if names is not None and len(names) != coefficients.shape[2]:
        raise SpecError(f"names has {len(names)} entries for {coefficients.shape[2]} features")
    ax = _axes() if ax is None else ax
    _paths(search, key, chosen, coefficients, ax, names)
    return ax


def _varying(search: Results) -> list[str]:
    params = search.table["params"]
    return [key for key in search.keys if len({p[key] for p in params}) > 1]


def _axes() -> "Axes":
    from matplotlib import pyplot

    _, ax = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    return ax


def _strengths(ax: "Axes", x: NDArray[Any], key: str) -> None:
    """Put strengths on the horizontal axis: logarithmic, with a place for 0 if it is there."""
    positive = x[x > 0]
    if len(positive) > 1 and positive.max() / positive.min() >= 10:
        if len(positive) == len(x):
            ax.set_xscale("log")
        else:
            ax.set_xscale("symlog", linthresh=positive.min(), linscale=0.5)
            ax.set_xlim(left=0)
    ax.set_xlabel(_wrapped(ax, f"strength of {key}", 0))


def _wrapped(ax: "Axes", text: str, side: int) -> str:
    """Return a label in as many lines as it needs beside an axis: a long one would be cut off."""
    figure = ax.figure.figure  # of a subfigure too; get_figure(root=True) is matplotlib 3.10's
    share = (ax.get_position().width, ax.get_position().height)[side]
    inches = figure.get_size_inches()[side] * share
    return "\n".join(textwrap.wrap(text, max(12, int(inches * 11))))  # a letter is about 1/13 inch


def _ticks(values: Sequence[float]) -> list[str]:
    """Return the shortest labels that differ."""
    for digits in range(2, 18):
        labels = [f"{value:.{digits}g}" for value in values]
        if len(set(labels)) == len(values):
            break
    return labels


def _marks(search: Results, ax: "Axes", key: str) -> None:
    best, strongest = search.best_params[key], search.one_se_params
    ax.axvline(best, color=_BEST, linestyle="--", linewidth=1.2, label=f"best: {best:.3g}")
    if strongest is not None:
        value = strongest[key]
        ax.axvline(
            value,
            color=_ONE_SE,
            linestyle=":",
            linewidth=1.6,
            label=f"one standard error: {value:.3g}",
        )


def _curve(search: Results, key: str, ax: "Axes") -> None:
    results = search.table
    x = np.array([params[key] for params in results["params"]], dtype=float)
    order = np.argsort(x)
    x = x[order]
    mean, error = results["mean_test_score"][order], results["se_test_score"][order]
    ax.errorbar(
        x,
        mean,
        error if np.isfinite(error).any() else None,
        fmt="o-",
        color=_POINT,
        ecolor=_BAR,
        markersize=4,
        linewidth=1,
        elinewidth=1.2,
        capsize=2.5,
    )
    _strengths(ax, x, key)
    _marks(search, ax, key)
    ax.set_ylabel(f"{search.scoring}\nmean of {search.folds} folds ± standard error")
    ax.grid(axis="y", color="#eaeded")
    ax.set_axisbelow(True)
    ax.legend(frameon=False, fontsize="small")
    nonzero = results["mean_nonzero"][order]
    if np.isfinite(nonzero).all():
        _counts_on_top(ax, x, nonzero)


def _counts_on_top(ax: "Axes", x: NDArray[Any], counts: NDArray[Any], most: int = 10) -> None:
    top = ax.secondary_xaxis("top")
    shown = np.unique(np.linspace(0, len(x) - 1, min(most, len(x))).round().astype(int))
    top.set_xticks(x[shown], [f"{counts[i]:.0f}" for i in shown])
    top.minorticks_off()
    top.tick_params(length=3, labelsize="small")
    top.set_xlabel("weights that are not zero", fontsize="small")


def _heat_map(search: Results, keys: Sequence[str], ax: "Axes") -> None:
    results = search.table
    rows, columns = ([p[key] for p in results["params"]] for key in keys)
    ys, xs = sorted(set(rows)), sorted(set(columns))
    table = np.full((len(ys), len(xs)), np.nan)
    for row, column, mean in zip(rows, columns, results["mean_test_score"], strict=True):
        table[ys.index(row), xs.index(column)] = mean
    # One hopeless corner must not take all the colours.
    worst, middle, top = np.nanmin(table), np.nanmedian(table), np.nanmax(table)
    low = max(worst, middle - 3 * (top - middle)) if top > middle else worst
    image = ax.imshow(table, origin="lower", aspect="auto", cmap="viridis", vmin=low)
    ax.set_yticks(range(len(ys)), _ticks(ys))
    labels = _ticks(xs)
    # Side by side they need room for all their letters.
    ax.set_xticks(range(len(xs)), labels, rotation=90 if sum(map(len, labels)) > 45 else 0)
    ax.set_ylabel(_wrapped(ax, f"strength of {keys[0]}", 1))
    ax.set_xlabel(_wrapped(ax, f"strength of {keys[1]}", 0))
    figure = ax.figure
    figure.colorbar(
        image,
        ax=ax,
        label=f"mean {search.scoring}",
        extend="min" if low > worst else "neither",
    )
    marks = [
        ("best", search.best_params, "*", _BEST, 190),
        ("one standard error", search.one_se_params, "o", _ONE_SE, 110),
    ]
    for label, params, marker, color, size in marks:
        if params is not None:
            place = xs.index(params[keys[1]]), ys.index(params[keys[0]])
            ax.scatter(
                *place,
                marker=marker,
                s=size,
                color=color,
                edgecolors="white",
                linewidths=1.4,
                label=label,
            )
    ax.legend(
        loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2, frameon=False, fontsize="small"
    )


def _paths(
    search: Results,
    key: str,
    chosen: Sequence[int],
    coefficients: NDArray[Any],
    ax: "Axes",
    names: Sequence[str] | None,
) -> None:
    x = np.array([search.table["params"][index][key] for index in chosen], dtype=float)
    mean = coefficients.mean(axis=1)
    low, high = coefficients.min(axis=1), coefficients.max(axis=1)
    colors = []
    for feature in range(mean.shape[1]):
        (line,) = ax.plot(x, mean[:, feature], linewidth=1.3)
        colors.append(line.get_color())
        band = low[:, feature], high[:, feature]
        ax.fill_between(x, *band, color=colors[-1], alpha=0.12, linewidth=0)
    ax.axhline(0, color=_BAR, linewidth=0.8)
    _strengths(ax, x, key)
    _marks(search, ax, key)
    ax.set_ylabel(f"coefficients, mean of {search.folds} folds and range")
    ax.legend(frameon=False, fontsize="small")
    if names is not None:
        _names_beside(ax, x[0], mean[0], names, colors)


def _names_beside(
    ax: "Axes", x: float, y: NDArray[Any], names: Sequence[str], colors: Sequence[Any]
) -> None:
    """Write each name left of where its line begins, moved up where two would overlap."""
    order = np.argsort(y)
    low, high = ax.get_ylim()
    places = np.array(y, dtype=float)
    for below, above in itertools.pairwise(order):
        places[above] = max(places[above], places[below] + 0.035 * (high - low))
    for place, name, color in zip(places, names, colors, strict=True):
        ax.annotate(
            name,
            (x, place),
            xytext=(-5, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize="small",
            color=color,
            annotation_clip=False,
        )
    # Room for them, on an axis of either scale.
    left, right = ax.transData.transform([(x, 0), (ax.get_xlim()[1], 0)])[:, 0]
    room = ax.transData.inverted().transform((left - 0.09 * (right - left), 0))[0]
    ax.set_xlim(left=max(room, 0) if ax.get_xscale() != "linear" else room)
