"""What a notebook shows of a search that is done: the best combinations and what was chosen."""

from html import escape
from typing import Any

import numpy as np

from regplug.table import html_table

__all__ = ["scores_html"]

_MOST = 10


def scores_html(search: Any) -> str:
    """Return the table of the best combinations of a fitted search, the best first."""
    results = search.cv_results_
    keys = list(results["params"][0])
    rows = []
    for place in np.argsort(results["rank_test_score"], kind="stable")[:_MOST]:
        params = results["params"][place]
        marks = [
            name
            for name, chosen in (("best", search.best_params_), ("one SE", search.one_se_params_))
            if chosen == params
        ]
        mean, error = results["mean_test_score"][place], results["se_test_score"][place]
        weights = results["mean_nonzero"][place]
        rows.append(
            [
                *(f"{params[key]:g}" for key in keys),
                f"{mean:.4g} ± {error:.2g}",
                "–" if np.isnan(weights) else f"{weights:,.0f}",
                ", ".join(marks),
            ]
        )
    tried = len(results["params"])
    title = f"StrengthCV: {tried} combinations, {search.n_splits_} folds"
    if tried > _MOST:
        title += f"; the best {_MOST}"
    heads = [*keys, "score ± SE", "weights not 0", ""]
    return f"<div>{escape(title)}</div>{html_table(heads, rows)}"
