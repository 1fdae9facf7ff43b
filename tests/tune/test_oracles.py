"""The same choices as scikit-learn's own searches, which solve these problems by other means."""

import functools

import numpy as np
import pytest
import torch
from sklearn.datasets import make_regression
from sklearn.linear_model import ElasticNet, ElasticNetCV, LassoCV, Ridge, RidgeCV
from sklearn.metrics import make_scorer, mean_squared_error
from sklearn.model_selection import KFold, cross_val_score

import regplug
from regplug.errors import RegplugError, SpecError
from regplug.tune import Auto, Recipe, StrengthCV

CV = KFold(5, shuffle=True, random_state=0)
Search = functools.partial(StrengthCV, cv=CV, progress=False)


def problem(features=20, noise=20.0, seed=0):
    """100 rows, of which 6 features matter."""
    X, y = make_regression(100, features, n_informative=6, noise=noise, random_state=seed)
    return (X - X.mean(axis=0)) / X.std(axis=0), y / y.std()


X, Y = problem()


def half_mse(output, target):
    return 0.5 * torch.nn.functional.mse_loss(output, target)


def linear(features=20):
    model = torch.nn.Linear(features, 1, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    return model


descent = Recipe(linear, half_mse, functools.partial(torch.optim.SGD, lr=0.3), epochs=400)


def loop(X, y, plugins, start=None, epochs=400):
    """The same as a loop written by hand, which can go on from an earlier model."""
    model = linear(X.shape[1])
    if start is not None:
        model.load_state_dict(start.state_dict())
    inputs, targets = torch.tensor(X), torch.tensor(y)[:, None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    with regplug.attach(model, optimizer, plugins):
        for _ in range(epochs):
            optimizer.zero_grad()
            half_mse(model(inputs), targets).backward()
            optimizer.step()
    return model


def test_lasso():
    X, y = problem(features=40, noise=40.0, seed=5)
    strengths = np.geomspace(0.5, 0.5e-3, 25)
    build, optimizer = functools.partial(linear, 40), functools.partial(torch.optim.SGD, lr=0.3)
    recipe = Recipe(build, half_mse, optimizer, epochs=800)
    key = "l1(_, delivery='proximal')"
    search = Search(recipe, {key: strengths}, rule="one_se").fit(X, y)
    lasso = LassoCV(alphas=strengths, cv=CV, tol=1e-12, max_iter=100_000).fit(X, y)

    assert search.best_params_[key] == lasso.alpha_
    np.testing.assert_allclose(
        -search.cv_results_["mean_test_score"], lasso.mse_path_.mean(axis=1), rtol=1e-5
    )
    # The one-standard-error choice from scikit-learn's own errors, in its own order: the first of
    # the descending strengths that is low enough.
    errors = lasso.mse_path_
    top = errors.mean(axis=1).argmin()
    ceiling = errors[top].mean() + errors[top].std(ddof=1) / np.sqrt(5)
    (first, *_) = np.flatnonzero(errors.mean(axis=1) <= ceiling)
    assert search.one_se_params_[key] == lasso.alphas_[first]
    # What it is good for: the best keeps 20 features, and the truth is 6.
    assert np.count_nonzero(lasso.coef_) == 20
    assert search.best_model_.weight.count_nonzero() == 6


def test_elastic_net():
    alphas, ratio = np.geomspace(0.3, 0.003, 8), 0.5
    grid = {"l1(_, delivery='proximal')": alphas * ratio, "l2": alphas * (1 - ratio) / 2}
    search = Search(descent, grid).fit(X, Y)
    pairs = [tuple(params.values()) for params in search.cv_results_["params"]]
    means = search.cv_results_["mean_test_score"]

    net = ElasticNetCV(l1_ratio=ratio, alphas=alphas, cv=CV, tol=1e-12, max_iter=100_000).fit(X, Y)
    diagonal = [pairs.index((a * ratio, a * (1 - ratio) / 2)) for a in alphas]
    np.testing.assert_allclose(-means[diagonal], net.mse_path_.mean(axis=1), rtol=1e-5)
    assert alphas[means[diagonal].argmax()] == net.alpha_
    for index in (3, 17, 60):  # off the diagonal, other ratios
        l1, l2 = pairs[index]
        other = ElasticNet(l1 + 2 * l2, l1_ratio=l1 / (l1 + 2 * l2), tol=1e-12, max_iter=100_000)
        own = cross_val_score(other, X, Y, cv=CV, scoring="neg_mean_squared_error").mean()
        assert means[index] == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize("spec", ["l2", "l2(_, delivery='loss')", "l2(_, delivery='proximal')"])
def test_ridge(spec):
    # scikit-learn's ½‖y − Xw‖² + ½α‖w‖² is 80 times ½·MSE + λ‖w‖² with α = 2·80·λ.
    strengths = np.geomspace(1, 1e-4, 9)
    search = Search(descent, {spec: strengths}).fit(X, Y)
    ridge = RidgeCV(alphas=160 * strengths, cv=CV, scoring="neg_mean_squared_error").fit(X, Y)
    assert search.best_params_[spec] == pytest.approx(ridge.alpha_ / 160)
    own = [
        cross_val_score(Ridge(160 * s), X, Y, cv=CV, scoring="neg_mean_squared_error").mean()
        for s in strengths
    ]
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], own, rtol=1e-5)
    assert search.best_score_ == pytest.approx(ridge.best_score_, rel=1e-5)


# --- automatic grids --------------------------------------------------------------------------


@pytest.mark.parametrize("train", [descent, loop])
def test_an_automatic_grid_is_lasso_cvs(train):
    search = Search(train, {"l1": Auto(eps=1e-2, n=6)}, cv=KFold(3)).fit(X, Y)
    found = [params["l1"] for params in search.cv_results_["params"]]
    alphas = LassoCV(eps=1e-2, cv=KFold(3), max_iter=10_000, **_count(LassoCV, 6)).fit(X, Y).alphas_
    np.testing.assert_allclose(found, alphas, rtol=1e-8)
    lasso = LassoCV(alphas=found, cv=KFold(3), tol=1e-12, max_iter=100_000).fit(X, Y)
    np.testing.assert_allclose(
        -search.cv_results_["mean_test_score"], lasso.mse_path_.mean(axis=1), rtol=1e-5
    )
    # All weights are zero at the first strength and not at the one below, of all data.
    assert (
        train(X, Y, [f"l1({found[0] * 1.000001}, delivery='proximal')"]).weight.count_nonzero() == 0
    )
    assert train(X, Y, [f"l1({found[0] * 0.99}, delivery='proximal')"]).weight.count_nonzero() == 1


def _count(estimator, n):
    return {"alphas": n} if "n_alphas" not in estimator().get_params() else {"n_alphas": n}


def test_auto_alone_means_the_defaults():
    search = Search(descent, {"l1": "auto"}, cv=KFold(2)).fit(X, Y)
    found = [params["l1"] for params in search.cv_results_["params"]]
    assert len(found) == Auto().n
    assert found[-1] == pytest.approx(found[0] * Auto().eps)


def test_an_automatic_grid_of_an_elastic_net_knows_its_own_proximal_operator():
    search = Search(descent, {"elastic_net(_, 0.1)": Auto(n=2)}, cv=KFold(2)).fit(X, Y)
    top = np.abs(X.T @ (Y - Y.mean())).max() / len(X)
    assert search.cv_results_["params"][0]["elastic_net(_, 0.1)"] == pytest.approx(top, rel=1e-8)


def test_an_automatic_grid_of_a_loop_in_batches_is_near():
    batches = Recipe(
        linear, half_mse, functools.partial(torch.optim.SGD, lr=0.02), epochs=60, batch_size=20
    )
    search = Search(batches, {"l1": Auto(n=2)}, cv=KFold(2)).fit(X, Y)
    top = np.abs(X.T @ (Y - Y.mean())).max() / len(X)
    assert search.cv_results_["params"][0]["l1"] == pytest.approx(top, rel=0.02)


def test_warm_starts_go_along_the_path_from_strong_to_weak():
    calls = []

    def train(X, y, plugins, start=None):
        model = loop(X, y, plugins, start, epochs=3)
        calls.append((plugins[0].name, plugins[0].strength, start, model))
        return model

    search = Search(train, {"l2": [0.1, 0.001], "l1": Auto(n=3)}, cv=KFold(2)).fit(X, Y)
    probe, *fits, last = calls
    assert probe[:2] == ("l2", 0.1)
    assert last[2] is None
    assert len(fits) == 2 * 2 * 3
    for first in range(0, len(fits), 3):
        path = fits[first : first + 3]
        assert [start for _, _, start, _ in path] == [None, path[0][3], path[1][3]]
        assert len({strength for _, strength, _, _ in path}) == 1  # of l2
    assert search.cv_results_["params"][0]["l1"] > search.cv_results_["params"][1]["l1"]


def test_warm_starts_reach_what_cold_ones_reach_in_fewer_epochs():
    grid = {"l1": Auto(n=8)}
    short = Search(functools.partial(loop, epochs=40), grid, cv=KFold(2)).fit(X, Y)
    cold = Search(lambda X, y, plugins: loop(X, y, plugins, epochs=40), grid, cv=KFold(2)).fit(X, Y)
    exact = Search(descent, grid, cv=KFold(2)).fit(X, Y).cv_results_["mean_test_score"]
    off = [np.abs(s.cv_results_["mean_test_score"] - exact)[1:].max() for s in (short, cold)]
    assert off[0] < off[1]


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"weight_decay": "auto"}, "for penalties"),
        ({"l1(_, delivery='step')": "auto"}, "only delivery='proximal'"),
        ({"l2": "auto"}, "no strength makes all weights zero"),
        ({"l1": "best"}, "'auto'"),
    ],
)
def test_an_automatic_grid_where_there_is_none(grid, words):
    with pytest.raises(SpecError, match=words):
        Search(descent, grid).fit(X, Y)


def test_an_automatic_grid_needs_a_gradient_and_a_loop_that_attaches():
    def deep():
        return torch.nn.Sequential(torch.nn.Linear(20, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))

    def dead(X, y, plugins):
        model = deep()
        with torch.no_grad():
            model[0].bias.zero_()
        optimizer = torch.optim.SGD([model[0].weight, model[2].weight], lr=0.1)
        with regplug.attach(model, optimizer, plugins):
            inputs, targets = (torch.tensor(each, dtype=torch.float32) for each in (X, y))
            half_mse(model(inputs), targets).backward()
            optimizer.step()
        return model

    recipe = Recipe(deep, half_mse, functools.partial(torch.optim.SGD, lr=0.1), epochs=3)
    with pytest.raises(SpecError, match="gradient at zero weights, which is 0"):
        Search(dead, {"l1": "auto"}).fit(X, Y[:, None])
    only_last = {"l1(_, where='2.weight')": Auto(n=2)}
    search = Search(recipe, only_last, cv=KFold(2)).fit(X.astype(np.float32), Y.astype(np.float32))
    assert search.best_params_["l1(_, where='2.weight')"] > 0
    with pytest.raises(RegplugError, match="no optimizer step"):
        Search(lambda X, y, plugins: np.ravel, {"l1": "auto"}).fit(X, Y)


def test_the_scorer_of_the_oracle_is_the_default():
    one = Search(descent, {"l2": [0.1]}).fit(X, Y)
    two = Search(
        descent, {"l2": [0.1]}, scoring=make_scorer(mean_squared_error, greater_is_better=False)
    ).fit(X, Y)
    assert one.best_score_ == two.best_score_
