"""What a search can't know and its user should look at: an edge of the grid, outputs read wrong."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from regplug.tune.data import as_numpy
from regplug.tune.estimator import Trained
from regplug.tune.grid import Auto, Axis, Candidate

__all__ = ["at_edge", "edges", "no_logits"]


def edges(axes: Sequence[Axis], asked: Sequence[Axis], best: Candidate) -> dict[str, str]:
    """Return the keys whose best strength is the weakest or the strongest, and which of the two.

    Ends that nothing lies beyond are left out: 0, and the top of an automatic path, where all
    weights are zero.

    Args:
        axes: the grid's, with all strengths.
        asked: as they were asked for, automatic or not.
        best: the best strengths.
    """
    found = {}
    for axis, first in zip(axes, asked, strict=True):
        if isinstance(axis.values, Auto) or len(axis.values) < 2:
            continue
        value = best[axis.key]
        if value == min(axis.values) and value != 0:
            found[axis.key] = "weakest"
        elif value == max(axis.values) and not isinstance(first.values, Auto):
            found[axis.key] = "strongest"
    return found


def at_edge(axes: Sequence[Axis], best: Candidate, key: str, end: str) -> str:
    """Return what to say of a best strength at an end; "" for a list of two, which is all ends."""
    values = next(axis.values for axis in axes if axis.key == key)
    if isinstance(values, Auto) or len(values) < 3:
        return ""
    beyond = "weaker" if end == "weakest" else "stronger"
    return (
        f"the best strength of {key!r} is the {end} of its grid, {best[key]:.3g}: {beyond} ones "
        "may be better"
    )


def no_logits(trained: Trained, X: Any, y: Any) -> str:
    """Return a doubt about a handwritten loop's single column of scores, or "".

    It is read as log-odds. Whatever is log-odds tells 0 and 1 better after a sigmoid than as it is;
    what was trained on squared errors, or is a probability, tells them better as it is.
    """
    reading = trained.reading
    if reading.kind != "classification" or reading.tells is not None:
        return ""
    reads = getattr(trained, "reads_log_odds", None)
    if reads is None or (found := reads(X)) is None:
        return ""
    target = as_numpy(y).reshape(found.shape)
    truth = target if reading.indicator else target == reading.classes[-1]
    if len(reading.classes) < 2 and not reading.indicator:
        return ""
    chance = 1 / (1 + np.exp(-np.clip(found, -500, 500)))
    plain, turned = (float(np.mean((one - truth) ** 2)) for one in (found, chance))
    if plain >= turned:
        return ""
    return (
        "train returned one column of scores for two classes, which is read as log-odds (positive "
        "is the second class) and looks like probabilities or like values of 0 and 1: let the "
        "model itself end in a sigmoid, return labels or (n, 2) scores, or take a Recipe, whose "
        "loss is known"
    )
