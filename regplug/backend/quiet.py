"""Hooks of every module, registered without the warning that ``torch.compile`` has for them."""

import warnings
from collections.abc import Callable
from contextlib import suppress

__all__ = ["quiet_about_hooks"]


def quiet_about_hooks() -> Callable[[], None]:
    """Have torch not warn of global module hooks, and return what undoes that.

    Those of regplug look whether a graph is being traced, and cause none of what torch warns of.
    """
    warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global")
    mine = warnings.filters[0]

    def undo() -> None:
        with suppress(ValueError):  # gone with a catch_warnings of somebody's
            warnings.filters.remove(mine)  # type: ignore[attr-defined]

    return undo
