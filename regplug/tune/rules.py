r"""Which strength to take, once every one has its scores: the best, or the one-standard-error rule.

Scores are arrays of shape ``(candidates, folds)`` in which greater is better, as in scikit-learn.
A fit that scored NaN makes its candidate's mean NaN, and such a candidate is never chosen.

References:
    Leo Breiman, Jerome Friedman, Richard Olshen, Charles Stone, "Classification and Regression
    Trees", 1984, section 3.4.3 (the rule's origin).
    Trevor Hastie, Robert Tibshirani, Jerome Friedman, "The Elements of Statistical Learning",
    2nd edition, 2009, section 7.10, https://hastie.su.domains/ElemStatLearn/.
"""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["best", "one_standard_error", "ranks", "standard_errors"]

Floats = NDArray[np.float64]


def standard_errors(scores: Floats) -> Floats:
    r"""Return the standard error of each candidate's mean score, ``std(ddof=1) / √folds``.

    Args:
        scores: shape ``(candidates, folds)``.

    Returns:
        Shape ``(candidates,)``; NaN where a score is, and everywhere if there is one fold only.

    >>> standard_errors(np.array([[1.0, 3.0], [2.0, 2.0]]))
    array([1., 0.])
    """
    folds = scores.shape[1]
    if folds < 2:
        return np.full(len(scores), np.nan)
    errors: Floats = np.std(scores, axis=1, ddof=1) / np.sqrt(folds)
    return errors


def best(means: Floats) -> int:
    """Return the index of the greatest mean; NaN never wins, and of equal ones the first does.

    Raises:
        ValueError: every mean is NaN.

    >>> best(np.array([0.1, np.nan, 0.3, 0.3]))
    2
    """
    if np.isnan(means).all():
        raise ValueError("no candidate has a score")
    return int(np.nanargmax(means))


def one_standard_error(params: Sequence[Mapping[str, float]], means: Floats, errors: Floats) -> int:
    """Return the index of the strongest candidate that is as good as the best, within its error.

    Let b be the best candidate. Of all i with s̄ᵢ ≥ s̄_b − SE_b the rule takes the one with the
    largest strength.
    With several strengths the first key decides, then the second, and so on.

    Args:
        params: one mapping of strengths for each candidate, all with the same keys.
        means: shape ``(candidates,)``, the mean scores.
        errors: shape ``(candidates,)``, their standard errors; the best's must not be NaN.

    Raises:
        ValueError: every mean is NaN, or the best candidate's standard error is.

    >>> strengths = [{"l1": 1.0}, {"l1": 0.1}, {"l1": 0.01}]
    >>> one_standard_error(strengths, np.array([0.70, 0.88, 0.90]), np.array([0.05, 0.04, 0.03]))
    1
    """
    top = best(means)
    if np.isnan(errors[top]):
        raise ValueError("the standard error of the best candidate is not known")
    floor = means[top] - errors[top]
    near = [i for i in range(len(params)) if means[i] >= floor]
    return max(near, key=lambda i: tuple(params[i].values()))


def ranks(means: Floats) -> NDArray[np.int32]:
    """Return each candidate's rank, 1 for the best; equal ones share a rank, NaN comes last.

    >>> ranks(np.array([0.5, np.nan, 0.7, 0.5]))
    array([2, 4, 1, 2], dtype=int32)
    """
    known = np.where(np.isnan(means), -np.inf, means)
    worse = np.array([(known > one).sum() for one in known])
    missing = np.isnan(means)
    return np.where(missing, (~missing).sum() + 1, worse + 1).astype(np.int32)


def summary(scores: Floats) -> dict[str, Floats]:
    """Return mean, standard deviation (``ddof=0``, as in scikit-learn) and standard error.

    >>> {name: float(value[0]) for name, value in summary(np.array([[1.0, 3.0]])).items()}
    {'mean_test_score': 2.0, 'std_test_score': 1.0, 'se_test_score': 1.0}
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return {
            "mean_test_score": scores.mean(axis=1),
            "std_test_score": scores.std(axis=1),
            "se_test_score": standard_errors(scores),
        }
