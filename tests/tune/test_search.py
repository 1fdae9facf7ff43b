"""StrengthCV around loops of a user's own: folds, scores, seeds, workers."""

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
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
from regplug.errors import SpecError
from tests.tune.rows import LABELS, N, Search, X, Y, ridge


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
