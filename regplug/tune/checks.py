"""What a search refuses before its first fit: wrong arguments, strengths and weights of rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from regplug.discovery.catalog import load
from regplug.errors import PluginNotFoundError, RegplugError, SpecError
from regplug.tune import auto
from regplug.tune.data import check_weight
from regplug.tune.fits import Train, check_train, takes_weight
from regplug.tune.grid import Auto, Grid
from regplug.tune.recipe import Recipe

__all__ = ["check_strengths", "checked_grid", "checked_weight"]

_RULES = ("best", "one_se")


def checked_grid(
    train: Train, grid: Mapping[str, Any], *, rule: Any, seed: Any, weighted: bool
) -> Grid:
    """Return the grid; everything that can be known without data is checked.

    Raises:
        SpecError: an argument, a key or a strength is wrong.
        PluginNotFoundError: there is no such plugin.
    """
    if rule not in _RULES:
        raise SpecError(f"rule must be one of {', '.join(_RULES)}, got {rule!r}")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise SpecError(f"seed must be a whole number of at least 0, got {seed!r}")
    check_train(train, weighted=weighted)
    made = Grid(grid)
    check_strengths(made)
    return auto.check_automatic(made)


def checked_weight(train: Train, weight: Any, X: Any) -> Any:
    """Return a weight for each row of ``X``, if there are any and the loop takes them.

    Raises:
        SpecError: the loop does not, or they are no such weights.
    """
    if weight is None:
        return None
    if not takes_weight(train):
        raise SpecError(
            "sample_weight is for a loop that takes it, train(X, y, plugins, sample_weight)"
            + (
                "; a Recipe's loss is one number for a batch: write the loop by hand"
                if isinstance(train, Recipe)
                else ""
            )
        )
    return check_weight(weight, X)


def check_strengths(grid: Grid) -> None:
    """Let every plugin judge every strength, alone and together.

    Raises:
        SpecError: one is refused, or two plugins have one name; the message names key and strength.
        PluginNotFoundError: there is no such plugin.
    """
    plugins = []
    for axis in grid.axes:
        values = (1.0,) if isinstance(axis.values, Auto) else axis.values
        for value in values:
            try:
                plugin = load(axis.spec(value))
            except PluginNotFoundError:
                raise
            except RegplugError as error:
                raise SpecError(f"grid[{axis.key!r}] refuses {value!r}: {error}") from error
        if axis.place == 0:  # the others of this spec are of the same plugin
            plugins.append((axis.key, plugin.name))
    for _, name in plugins:
        same = [other for other, its in plugins if its == name]
        if len(same) > 1:
            raise SpecError(
                f"grid: {' and '.join(map(repr, same))} both make a plugin named {name!r}; "
                "give one of them name=…"
            )
