"""A search in which something is wrong: told by name, before the first fit where it can be."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.model_selection import (
    GroupKFold,
)

from regplug.errors import PluginNotFoundError, RegplugError, SpecError
from regplug.tune import StrengthCV
from tests.tune.rows import LABELS, N, Search, X, Y, diverging


def test_a_nan_score_ranks_last_and_is_named():
    with pytest.warns(UserWarning, match=r"NaN scores.*\{'l2': 1.0\} on fold 0"):
        search = Search(diverging, {"l2": [1.0, 0.1]}, cv=3).fit(X, Y)
    assert search.best_params_ == search.one_se_params_ == {"l2": 0.1}
    assert search.cv_results_["rank_test_score"].tolist() == [2, 1]
    with pytest.raises(RegplugError, match=r"every combination scored NaN.*\{'l2': 1.0\}"):
        Search(diverging, {"l2": [1.0]}, cv=3).fit(X, Y)


def failing(X, y, plugins):
    if plugins[0].strength == 0.1 and 29.0 not in X[:, 0]:
        raise ZeroDivisionError("no luck")
    return lambda X: X[:, 0]


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_a_fit_that_raises_ends_the_search_by_name(n_jobs):
    rows = np.arange(30.0)[:, None]
    message = r"the fit with \{'l2': 0.1\} on fold 4 failed: ZeroDivisionError: no luck"
    with pytest.raises(RegplugError, match=message) as caught:
        Search(failing, {"l2": [1.0, 0.1, 0.01]}, cv=5, n_jobs=n_jobs).fit(rows, rows[:, 0])
    if n_jobs is None:
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "must return a predictor.*None"),
        (3.0, "must return a predictor.*3.0"),
        (lambda X: 1.0, "float for 10 rows"),
        (lambda X: np.zeros(3), r"shape \(3,\) for 10 rows"),
        (lambda X: torch.zeros(3, 2), r"shape \(3, 2\) for 10 rows"),
    ],
)
def test_a_train_that_returns_no_predictor_is_named(returned, words):
    with pytest.raises(SpecError, match=rf"\{{'l2': 1.0\}} on fold 0.*{words}"):
        Search(lambda X, y, plugins: returned, {"l2": [1.0]}, cv=3).fit(X, Y)


def never(X, y, plugins):
    pytest.fail("a fit was started")


def _with_nan(data, where):
    data = data.copy()
    data[where] = np.nan
    return data


@pytest.mark.parametrize(
    ("arguments", "data", "error", "words"),
    [
        ({"grid": {"l3": [1.0]}}, (X, Y), PluginNotFoundError, "l3.*l1"),
        ({"grid": {"l1": [-1.0]}}, (X, Y), SpecError, r"grid\['l1'\] refuses -1.0"),
        ({"grid": {"l1": [1.0, -1.0]}}, (X, Y), SpecError, r"refuses -1.0.*not negative"),
        ({"grid": {"l1(_, delivery='x')": [1.0]}}, (X, Y), SpecError, "delivery"),
        ({"grid": {"l1": [1.0], "l1(_, where='all')": [1.0]}}, (X, Y), SpecError, "named 'l1'"),
        ({"grid": {}}, (X, Y), SpecError, "empty"),
        ({"cv": 40}, (X, Y), SpecError, "can't split 30 rows"),
        ({"cv": 1}, (X, Y), SpecError, "cv=1"),
        ({"cv": "five"}, (X, Y), SpecError, "five"),
        ({"cv": [(range(30), [])]}, (X, Y), SpecError, "fold 0 has no test rows"),
        ({"cv": []}, (X, Y), SpecError, "no fold"),
        ({"rule": "1se"}, (X, Y), SpecError, "rule.*'1se'"),
        ({"scoring": "beauty"}, (X, Y), SpecError, "'beauty'"),
        ({"scoring": ["r2"]}, (X, Y), SpecError, "scoring must be"),
        ({"seed": -1}, (X, Y), SpecError, "seed.*-1"),
        ({"train": None}, (X, Y), SpecError, "train must be a callable.*None"),
        ({"train": lambda X, y: None}, (X, Y), SpecError, "three arguments"),
        ({}, (_with_nan(X, (4, 2)), Y), SpecError, r"X holds 1 value that is NaN.*\[4, 2\]"),
        ({}, (X, _with_nan(Y, slice(3, 5))), SpecError, r"y holds 2 values that are NaN.*\[3\]"),
        ({}, (torch.tensor(_with_nan(X, 0)), Y), SpecError, "X holds 3 values"),
        ({}, (pd.DataFrame(_with_nan(X, 0)).assign(name="a"), Y), SpecError, "X holds 3 values"),
        ({}, (X, [None, *LABELS[1:]]), SpecError, r"y holds 1 value that is NaN.*\[0\]"),
        ({}, (X, pd.Series([1, pd.NA] * 15)), SpecError, "y holds 15 values"),
        ({"train": StrengthCV}, (X, Y), SpecError, "three arguments"),
        ({}, (np.full((N, 3), np.inf), Y), SpecError, "X holds 90 values"),
        ({}, (X, Y[:-1]), SpecError, "X has 30 rows and y has 29"),
        ({}, (X[:0], Y[:0]), SpecError, "empty"),
        ({}, (X, None), SpecError, "y is None"),
        ({}, (object(), Y), SpecError, "X must be an array"),
    ],
)
def test_what_is_wrong_is_an_error_before_the_first_fit(arguments, data, error, words):
    settings = {"train": never, "grid": {"l1": [1.0]}, "cv": 3, **arguments}
    with pytest.raises(error, match=f"(?s){words}") as caught:
        Search(**settings).fit(*data)
    assert isinstance(caught.value, LookupError if error is PluginNotFoundError else ValueError)


def test_groups_of_another_length_are_named():
    with pytest.raises(SpecError, match="groups has 3"):
        Search(never, {"l1": [1.0]}, cv=GroupKFold(3)).fit(X, Y, groups=[1, 2, 3])


def test_scores_of_the_wrong_width_and_missing_scores_are_named():
    def wide(X, y, plugins):
        return lambda X: np.zeros((len(X), 3))

    with pytest.raises(RegplugError, match="3 scores for each row, and y has 2 classes"):
        Search(wide, {"l1": [1.0]}, cv=3).fit(X, LABELS)

    def labels(X, y, plugins):
        return lambda X: np.full(len(X), "yes")

    with pytest.raises(RegplugError, match=r"need \(n, C\) scores"):
        Search(labels, {"l1": [1.0]}, cv=3, scoring="neg_log_loss").fit(X, LABELS)


@pytest.mark.parametrize("missing", ["joblib", "sklearn", "tqdm"])
def test_without_its_extra_it_says_what_to_install(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; import regplug.tune"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert f"regplug.tune needs {missing}: pip install 'regplug[tune]'" in found.stderr.decode()


def test_regplug_alone_does_not_import_it():
    """Catches an import at the top that `import regplug` would pay for: the child asserts."""
    code = "import regplug, sys; assert not {'sklearn', 'regplug.tune'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
