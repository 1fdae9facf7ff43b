"""What came of a search: the table of its scores, and which strengths the rules choose."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regplug.errors import RegplugError
from regplug.tune import rules
from regplug.tune.fits import Outcome
from regplug.tune.grid import Candidate

__all__ = ["Choice", "Results", "chosen", "tabulated", "unscored"]


@dataclass(frozen=True)
class Choice:
    """The places of the strengths with the best mean, and of the one-standard-error rule's."""

    best: int
    one_se: int | None


@dataclass(frozen=True)
class Results:
    """What a search found, as its pictures show it.

    Attributes:
        keys: the grid's.
        scoring: the scorer's name.
        folds: how many there were.
        table: ``cv_results_``.
        outcomes: what came of each fit.
        best_params: the strengths with the best mean.
        one_se_params: those of the one-standard-error rule, if there is one.
    """

    keys: Sequence[str]
    scoring: str
    folds: int
    table: Mapping[str, Any]
    outcomes: Sequence[Outcome]
    best_params: Candidate
    one_se_params: Candidate | None


def tabulated(
    candidates: Sequence[Candidate], keys: Sequence[str], folds: int, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """Return ``cv_results_``: one entry for each candidate, NaN where a fit is not done."""
    shape = (len(candidates), folds)
    scores, seconds, nonzero = (np.full(shape, np.nan) for _ in range(3))
    for one in outcomes:
        place = one.candidate, one.fold
        scores[place], seconds[place] = one.score, one.seconds
        nonzero[place] = np.nan if one.nonzero is None else one.nonzero
    summary = rules.summary(scores)
    return {
        "params": [dict(candidate) for candidate in candidates],
        **{f"param_{key}": np.array([c[key] for c in candidates]) for key in keys},
        **{f"split{fold}_test_score": scores[:, fold] for fold in range(folds)},
        **summary,
        "rank_test_score": rules.ranks(summary["mean_test_score"]),
        "mean_fit_time": seconds.mean(axis=1),
        "mean_nonzero": nonzero.mean(axis=1),
    }


def unscored(candidates: Sequence[Candidate], outcomes: Sequence[Outcome]) -> list[str]:
    """Return the fits that were done and have no score, in words."""
    return [
        f"{dict(candidates[one.candidate])} on fold {one.fold}"
        for one in outcomes
        if math.isnan(one.score)
    ]


def chosen(candidates: Sequence[Candidate], table: Mapping[str, Any]) -> Choice:
    """Return what the two rules choose.

    Raises:
        RegplugError: nothing has a score.
    """
    means, errors = table["mean_test_score"], table["se_test_score"]
    if np.isnan(means).all():
        raise RegplugError(
            "every combination scored NaN on some fold: the loop diverges, or the scorer "
            f"fails; the first was {candidates[0]}"
        )
    best = rules.best(means)
    one_se = None if np.isnan(errors[best]) else rules.one_standard_error(candidates, means, errors)
    return Choice(best, one_se)
