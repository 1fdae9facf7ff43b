"""StrengthCV around loops of a user's own: folds, scores, resuming, workers, errors."""

import functools
import json
import re
import signal
import subprocess
import sys
import time

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from interrupting import child
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.metrics import make_scorer
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneOut,
    ShuffleSplit,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import regplug
from regplug.errors import PluginNotFoundError, RegplugError, SpecError, StateError
from regplug.tune import StrengthCV

N = 30
X = np.random.default_rng(0).normal(size=(N, 3))
Y = X @ [2.0, 0.0, -1.0] + np.random.default_rng(1).normal(size=N)
LABELS = np.where(X[:, 0] + 0.3 * X[:, 1] > 0, "yes", "no")
Search = functools.partial(StrengthCV, progress=False)


def ridge(X, y, plugins):
    """A loop without steps: the closed form, with the strength of the plugin it was given."""
    (plugin,) = plugins
    alpha = 2 * len(X) * plugin.strength  # λ·Σw² beside ½·MSE
    return Ridge(alpha=alpha).fit(X, y).predict


def logits(X, y, plugins):
    """A linear classifier trained by gradient descent; columns in the order of np.unique."""
    names, index = np.unique(y, return_inverse=True)
    inputs, targets = torch.tensor(X, dtype=torch.float64), torch.tensor(index)
    model = torch.nn.Linear(X.shape[1], len(names), dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with regplug.attach(model, optimizer, plugins):
        for _ in range(30):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return model


def test_the_scores_are_those_of_scikit_learns_own_search():
    strengths = [10.0, 0.1, 0.001]
    cv = KFold(4, shuffle=True, random_state=0)
    search = Search(ridge, {"l2": strengths}, cv=cv).fit(X, Y)

    for index, strength in enumerate(strengths):
        # 4 folds of 30 rows train on 22 or 23 of them, and Ridge's alpha grows with the rows.
        own = []
        for train, test in cv.split(X):
            model = Ridge(alpha=2 * len(train) * strength).fit(X[train], Y[train])
            own.append(-np.mean((Y[test] - model.predict(X[test])) ** 2))
        got = [search.cv_results_[f"split{k}_test_score"][index] for k in range(4)]
        np.testing.assert_allclose(got, own, rtol=1e-12)
        assert search.cv_results_["mean_test_score"][index] == pytest.approx(np.mean(own))
        assert search.cv_results_["std_test_score"][index] == pytest.approx(np.std(own))
        error = np.std(own, ddof=1) / 2
        assert search.cv_results_["se_test_score"][index] == pytest.approx(error)
    assert search.cv_results_["params"] == [{"l2": s} for s in strengths]
    assert search.best_params_ == search.cv_results_["params"][search.best_index_]
    assert search.best_score_ == search.cv_results_["mean_test_score"].max()
    everything = Ridge(alpha=2 * N * search.best_params_["l2"]).fit(X, Y)
    np.testing.assert_allclose(search.predict(X), everything.predict(X), rtol=1e-12)
    assert search.score(X, Y) == pytest.approx(-np.mean((Y - search.predict(X)) ** 2))


def test_cv_results_have_the_names_of_grid_search():
    search = Search(ridge, {"l2": [1.0, 0.1]}, cv=3).fit(X, Y)
    theirs = GridSearchCV(Ridge(), {"alpha": [1.0, 0.1]}, cv=3).fit(X, Y).cv_results_
    missing = {name.replace("alpha", "l2") for name in theirs} - set(search.cv_results_)
    assert missing == {"std_fit_time", "mean_score_time", "std_score_time"}
    assert list(search.cv_results_["param_l2"]) == [1.0, 0.1]


def test_the_rule_says_what_the_last_model_is_trained_with():
    grid = {"l2": [0.3, 0.1, 0.01, 0.001]}
    best = Search(ridge, grid, cv=5).fit(X, Y)
    strong = Search(ridge, grid, cv=5, rule="one_se").fit(X, Y)
    assert strong.best_params_ == best.best_params_ != strong.one_se_params_
    assert strong.chosen_params_ == strong.one_se_params_ == best.one_se_params_
    assert strong.one_se_params_["l2"] > strong.best_params_["l2"]
    chosen = Ridge(alpha=2 * N * strong.one_se_params_["l2"]).fit(X, Y)
    np.testing.assert_allclose(strong.predict(X), chosen.predict(X), rtol=1e-12)


def test_no_fit_sees_a_row_that_it_is_scored_on_and_the_last_one_sees_all():
    rows = np.arange(20.0)[:, None]
    seen = []

    def spy(X, y, plugins):
        seen.append(set(X[:, 0]))
        assert X[:, 0].tolist() == y.tolist()
        return lambda X: X[:, 0]

    scored = []

    def scorer(estimator, X, y):
        scored.append(set(X[:, 0]))
        return 0.0

    cv = KFold(4, shuffle=True, random_state=3)
    Search(spy, {"l1": [1.0, 2.0], "l2": [1.0]}, cv=cv, scoring=scorer).fit(rows, rows[:, 0])
    assert len(scored) == 2 * 4
    assert len(seen) == 2 * 4 + 1
    for train, test in zip(seen, scored, strict=False):
        assert not train & test
        assert len(train | test) == 20
    assert len(seen[-1]) == 20


def test_the_plugins_are_new_ones_in_the_order_of_the_keys():
    met, kept = [], []

    def spy(X, y, plugins):
        met.append([(p.name, p.strength, p.delivery) for p in plugins])
        kept.extend(plugins)
        return lambda X: np.zeros(len(X))

    grid = {"l2": [1.0, 2.0], "l1(_, delivery='proximal')": [0.5]}
    Search(spy, grid, cv=2).fit(X, Y)
    assert met[0] == met[1] == [("l2", 1.0, "auto"), ("l1", 0.5, "proximal")]
    assert met[2] == met[3] == [("l2", 2.0, "auto"), ("l1", 0.5, "proximal")]
    assert len(set(map(id, kept))) == len(kept) == 10


def drawing(X, y, plugins):
    """Returns what the generators gave it."""
    drawn = float(torch.rand(())) + np.random.rand()
    return lambda X: np.full(len(X), drawn)


def test_seeds_are_the_same_whatever_ran_before_and_are_put_back():
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    one = Search(drawing, {"l1": [1.0, 2.0]}, cv=3).fit(X, Y)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    torch.manual_seed(99)
    two = Search(drawing, {"l1": [2.0]}, cv=3).fit(X, Y)
    other = Search(drawing, {"l1": [2.0]}, cv=3, seed=1).fit(X, Y)
    scores = [one.cv_results_[f"split{k}_test_score"] for k in range(3)]
    # The same for all strengths of a fold, another for each fold.
    assert all(score[0] == score[1] for score in scores)
    assert [two.cv_results_[f"split{k}_test_score"][0] for k in range(3)] == [s[1] for s in scores]
    drawn = [one.predict(X)[0], other.predict(X)[0]]
    assert len(set(drawn)) == 2


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_scores_are_the_same_whatever_the_workers(backend):
    grid = {"l2": [1.0, 0.01], "dropout": [0.1]}
    alone = Search(drawing, grid, cv=3).fit(X, Y)
    with joblib.parallel_config(backend=backend):
        search = Search(drawing, grid, cv=3, n_jobs=2).fit(X, Y)
    for k in range(3):
        name = f"split{k}_test_score"
        assert search.cv_results_[name].tolist() == alone.cv_results_[name].tolist()
    assert search.predict(X)[0] == alone.predict(X)[0]


def test_a_module_is_evaluated_in_its_own_type_and_without_dropout():
    def train(X, y, plugins):
        return torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Dropout(0.9))

    search = Search(train, {"l2": [1.0]}, cv=2).fit(X, Y)
    assert search.predict(X).shape == (N,)
    assert search.predict(X).tolist() == search.predict(X).tolist()
    assert search.cv_results_["mean_nonzero"].tolist() == [3.0]


@pytest.mark.parametrize("kind", ["tensor", "frame", "list"])
def test_a_loop_gets_rows_of_what_its_owner_has(kind):
    kinds = {"tensor": torch.Tensor, "frame": pd.DataFrame, "list": np.ndarray}
    data = {"tensor": torch.tensor(X), "frame": pd.DataFrame(X), "list": X.tolist()}[kind]
    target = {"tensor": torch.tensor(Y), "frame": pd.Series(Y), "list": Y.tolist()}[kind]

    def train(X, y, plugins):
        assert isinstance(X, kinds[kind])
        return ridge(np.asarray(X), np.asarray(y), plugins)

    search = Search(train, {"l2": [0.1]}, cv=3).fit(data, target)
    assert search.best_score_ == pytest.approx(
        Search(ridge, {"l2": [0.1]}, cv=3).fit(X, Y).best_score_
    )


def test_classes_are_labels_or_scores_of_any_kind():
    iris = load_iris()
    iris.data = StandardScaler().fit_transform(iris.data)
    names = iris.target_names[iris.target]
    for target in (iris.target, iris.target + 5, names):
        search = Search(logits, {"l2": [0.1, 0.01]}, cv=3).fit(iris.data, target)
        assert search.best_score_ > 0.8
        assert (search.predict(iris.data) == target).mean() > 0.8
        assert search.classes_.tolist() == np.unique(target).tolist()
        assert search.score(iris.data, target) == (search.predict(iris.data) == target).mean()

    def labels(X, y, plugins):
        model = logits(X, y, plugins)
        return lambda X: np.unique(y)[model(torch.tensor(X)).argmax(1)]

    again = Search(labels, {"l2": [0.1, 0.01]}, cv=3).fit(iris.data, names)
    assert (
        again.cv_results_["mean_test_score"].tolist()
        == search.cv_results_["mean_test_score"].tolist()
    )


def test_log_loss_and_ranking_scores_see_a_softmax():
    search = Search(logits, {"l2": [0.1]}, cv=3, scoring="neg_log_loss").fit(X, LABELS)
    scores = search.best_model_(torch.tensor(X)).detach().numpy()
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(search.predict_proba(X), chances, rtol=1e-12)
    own = -np.mean(np.log(chances[np.arange(N), (LABELS == "yes").astype(int)]))
    assert -search.score(X, LABELS) == pytest.approx(own)
    auc = Search(logits, {"l2": [0.1]}, cv=3, scoring="roc_auc").fit(X, LABELS)
    assert 0.9 < auc.best_score_ <= 1


def test_whole_numbers_are_a_regression_if_the_score_is_one():
    counts = np.round(Y * 10).astype(int)
    search = Search(ridge, {"l2": [0.01]}, cv=3, scoring="r2").fit(X, counts)
    assert search.best_score_ > 0.5
    assert not hasattr(search, "classes_")
    # The values of load_diabetes are whole, and stored as floats.
    assert Search(ridge, {"l2": [0.01]}, cv=3).fit(X, counts * 1.0).best_score_ < 0


def test_a_scorer_of_ones_own():
    worst = make_scorer(lambda y, p: np.abs(y - p).max(), greater_is_better=False)
    search = Search(ridge, {"l2": [1.0, 0.01]}, cv=3, scoring=worst).fit(X, Y)
    assert search.best_params_ == {"l2": 0.01}
    assert search.best_score_ < 0


def test_splitters_of_every_kind():
    groups = np.repeat(np.arange(6), 5)
    search = Search(ridge, {"l2": [0.1]}, cv=GroupKFold(3)).fit(X, Y, groups=groups)
    assert search.n_splits_ == 3
    with pytest.raises(SpecError, match="groups"):
        Search(ridge, {"l2": [0.1]}, cv=GroupKFold(3)).fit(X, Y)
    assert Search(ridge, {"l2": [0.1]}, cv=LeaveOneOut()).fit(X, Y).n_splits_ == N
    assert Search(ridge, {"l2": [0.1]}, cv=[(range(20), range(20, 30))]).fit(X, Y).n_splits_ == 1
    stratified = Search(logits, {"l2": [0.1]}, cv=StratifiedKFold(3)).fit(X, LABELS)
    number = Search(logits, {"l2": [0.1]}, cv=3).fit(X, LABELS)  # a number stratifies classes
    assert stratified.best_score_ == number.best_score_
    with pytest.raises(SpecError, match="two folds"):
        Search(ridge, {"l2": [0.1]}, cv=ShuffleSplit(1), rule="one_se").fit(X, Y)


def test_it_is_an_estimator():
    search = Search(ridge, {"l2": [1.0, 0.01]}, cv=3)
    again = clone(search)
    assert again is not search
    assert again.get_params()["grid"] == {"l2": [1.0, 0.01]}
    pipeline = make_pipeline(StandardScaler(), clone(search)).fit(X, Y)
    assert pipeline.predict(X).shape == (N,)
    scores = cross_val_score(search, X, Y, cv=3)
    assert (scores < 0).all()  # its own scorer, not R²
    with pytest.raises(NotFittedError):
        search.predict(X)
    assert not is_regressor(search)
    assert is_regressor(search.fit(X, Y))
    assert not hasattr(search, "predict_proba")
    classifier = Search(logits, {"l2": [0.1]}, cv=3)
    assert cross_val_predict(classifier, X, LABELS, cv=3, method="predict_proba").shape == (N, 2)
    assert is_classifier(classifier.fit(X, LABELS))


def test_nested_cross_validation_with_workers_outside():
    search = Search(ridge, {"l2": [1.0, 0.01]}, cv=3, n_jobs=2)
    inside = cross_val_score(search, X, Y, cv=2, n_jobs=2)
    assert inside.tolist() == cross_val_score(search, X, Y, cv=2).tolist()


def test_shuffled_labels_score_at_chance():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(80, 40))
    scores = []
    for _ in range(3):
        labels = rng.permutation(np.repeat([0, 1], 40))
        search = Search(logits, {"l2": [1.0, 0.001]}, cv=3)
        scores += list(cross_val_score(search, noise, labels, cv=4))
    # 240 rows were predicted: chance is 0.5 ± 0.03. A loop scored on its own rows is near 1.
    assert abs(np.mean(scores) - 0.5) < 0.1
    assert Search(logits, {"l2": [0.001]}, cv=4).fit(noise, labels).score(noise, labels) > 0.9


# --- going on after a stop --------------------------------------------------------------------


class Stopping:
    """Ridge that is stopped by Ctrl-C at some call."""

    def __init__(self, at=None):
        self.calls, self.at = 0, at

    def __call__(self, X, y, plugins):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return ridge(X, y, plugins)


def test_a_stopped_search_keeps_what_is_done_and_goes_on(tmp_path):
    file = tmp_path / "search.jsonl"
    grid = {"l2": [1.0, 0.1, 0.01]}
    whole = Search(ridge, grid, cv=4).fit(X, Y)
    stopped = Search(Stopping(at=6), grid, cv=4, resume=file)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(X, Y)
    kept = np.array([stopped.cv_results_[f"split{k}_test_score"] for k in range(4)]).T
    assert np.isfinite(kept).sum() == 5
    np.testing.assert_array_equal(
        kept[0], [whole.cv_results_[f"split{k}_test_score"][0] for k in range(4)]
    )

    rest = Stopping()
    search = Search(rest, grid, cv=4, resume=file).fit(X, Y)
    assert rest.calls == 12 - 5 + 1
    for name in ("mean_test_score", "se_test_score", "rank_test_score"):
        np.testing.assert_array_equal(search.cv_results_[name], whole.cv_results_[name])

    more = Stopping()  # the grid may grow
    Search(more, {"l2": [1.0, 0.1, 0.01, 0.001]}, cv=4, resume=file).fit(X, Y)
    assert more.calls == 4 + 1


STOPPABLE = """
import os, sys, time
import numpy as np
from regplug.tune import StrengthCV

def train(X, y, plugins):
    time.sleep(0.05)
    return lambda X: X[:, 0]

rows = np.arange(40.0)[:, None]
search = StrengthCV(train, {"l2": list(range(40))}, cv=5, n_jobs=2, resume=sys.argv[1])
try:
    search.fit(rows, rows[:, 0])
except KeyboardInterrupt:
    scores = [search.cv_results_[f"split{k}_test_score"] for k in range(5)]
    print("kept", int(np.isfinite(scores).sum()))
"""


def test_ctrl_c_stops_workers_cleanly(tmp_path):
    file = tmp_path / "search.jsonl"
    with child([sys.executable, "-c", STOPPABLE, file]) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (
            file.exists() and file.read_text().count("\n") > 12
        ):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.startswith("kept ")
    assert "Traceback" not in err
    assert 12 < file.read_text().count("\n") < 200


def test_a_file_cut_off_in_the_middle_of_a_line_goes_on(tmp_path):
    file = tmp_path / "search.jsonl"
    grid = {"l2": [1.0, 0.1]}
    whole = Search(ridge, grid, cv=3, resume=file).fit(X, Y)
    file.write_text(file.read_text()[:-20])
    search = Search(ridge, grid, cv=3, resume=file).fit(X, Y)
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], whole.cv_results_["mean_test_score"]
    )
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 1 + 6


def test_a_file_of_another_search_is_refused_and_names_the_difference(tmp_path):
    file = tmp_path / "search.jsonl"
    resumed = functools.partial(Search, ridge, {"l2": [1.0]}, resume=file)
    resumed(cv=3).fit(X, Y)
    with pytest.raises(StateError, match="folds differ"):
        resumed(cv=4).fit(X, Y)
    with pytest.raises(StateError, match="y differ"):
        resumed(cv=3).fit(X, Y + 1)
    with pytest.raises(StateError, match="scoring differ"):
        resumed(cv=3, scoring="r2").fit(X, Y)
    (tmp_path / "other").write_text("hello\n")
    with pytest.raises(StateError, match="no file of an earlier search"):
        Search(ridge, {"l2": [1.0]}, resume=tmp_path / "other").fit(X, Y)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "{}", *lines[1:]]) + "\n")
    with pytest.raises(StateError, match="line 2 is damaged"):
        resumed(cv=3).fit(X, Y)


def test_nan_scores_are_kept_in_the_file_too(tmp_path):
    file = tmp_path / "search.jsonl"
    for _ in range(2):
        with pytest.warns(UserWarning, match="NaN scores"):
            Search(diverging, {"l2": [1.0, 0.1]}, cv=3, resume=file).fit(X, Y)


def test_the_progress_is_told(capsys):
    StrengthCV(ridge, {"l2": [1.0, 0.1]}, cv=5).fit(X, Y)
    told = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(told) == 12  # the beginning, each fit, the end
    assert re.fullmatch(r"strengths █+ 10/10 fits, 00:00 \+ 00:00, best fold -\d.*", told[-1])
    StrengthCV(ridge, {"l2": [1.0, 0.1]}, cv=5, progress=False).fit(X, Y)
    assert capsys.readouterr().err == ""


def test_the_progress_rewrites_its_line_on_a_terminal():
    import io

    from regplug.tune.progress import Progress

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    bar = Progress(4, 1, stream=stream)
    bar.advance(3, -0.5)
    bar.close()
    bar.close()
    assert stream.getvalue().startswith("\rstrengths")
    assert stream.getvalue().endswith("4/4 fits, 00:00 + 00:00, best fold -0.5\n")
    assert stream.getvalue().count("\n") == 1


def test_the_progress_of_many_fits_is_a_few_lines_in_a_log():
    import io

    from regplug.tune.progress import Progress

    stream = io.StringIO()
    bar = Progress(1000, stream=stream)
    for _ in range(1000):
        bar.advance(1, -0.5)
    bar.close()
    assert len(stream.getvalue().strip().split("\r")) == 12
    assert stream.getvalue().endswith(" 1000/1000 fits, 00:00 + 00:00, best fold -0.5\n")


# --- what goes wrong --------------------------------------------------------------------------


def diverging(X, y, plugins):
    if plugins[0].strength == 1.0 and len(X):
        return lambda X: np.full(len(X), np.inf)
    return ridge(X, y, plugins)


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
    code = "import regplug, sys; assert not {'sklearn', 'regplug.tune'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
