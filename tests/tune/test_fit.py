"""What else a search takes and tells: weights of rows, edges of the grid, pictures, devices."""

import functools
import itertools

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import regplug
from regplug.errors import SpecError, StateError
from regplug.tune import Auto, Recipe, StrengthCV
from tests.tune.rows import Search

rng = np.random.default_rng(0)
X = rng.normal(size=(30, 3))
Y = X @ [2.0, 0.0, -1.0] + rng.normal(size=30)
WEIGHT = rng.uniform(0.1, 3, size=30)


def ridge(X, y, plugins, sample_weight=None):
    return Ridge(alpha=plugins[0].strength).fit(X, y, sample_weight).predict


# --- weights of rows --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.asarray, list, torch.tensor])
def test_weights_of_rows_reach_the_loop_fold_by_fold(kind):
    search = Search(ridge, {"l2": [1.0, 0.1]}, cv=3).fit(X, Y, sample_weight=kind(WEIGHT))
    for k, start in enumerate((0, 10, 20)):
        test = np.arange(start, start + 10)
        train = np.setdiff1d(np.arange(30), test)
        theirs = Ridge(alpha=1.0).fit(X[train], Y[train], WEIGHT[train])
        wanted = -np.mean((Y[test] - theirs.predict(X[test])) ** 2)
        assert search.cv_results_[f"split{k}_test_score"][0] == pytest.approx(wanted)
    best = Ridge(alpha=search.best_params_["l2"]).fit(X, Y, WEIGHT)
    np.testing.assert_allclose(search.predict(X), best.predict(X))
    plain = Search(ridge, {"l2": [1.0, 0.1]}, cv=3).fit(X, Y)
    assert plain.best_score_ != search.best_score_


def test_weights_go_through_pipelines_workers_warm_starts_and_automatic_grids(tmp_path):
    def train(X, y, plugins, sample_weight, start=None):
        assert len(sample_weight) == len(X) == len(y)
        model = nn.Linear(3, 1, dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with regplug.attach(model, optimizer, plugins):
            for _ in range(5):
                optimizer.zero_grad()
                errors = (model(torch.tensor(X))[:, 0] - torch.tensor(y)).square()
                (errors * torch.tensor(sample_weight)).mean().backward()
                optimizer.step()
        return model

    search = Search(train, {"l1": Auto(n=3)}, cv=3)
    make_pipeline(StandardScaler(), search).fit(X, Y, strengthcv__sample_weight=WEIGHT)
    one, two = (
        Search(ridge, {"l2": [1.0]}, cv=3, n_jobs=jobs).fit(X, Y, sample_weight=WEIGHT)
        for jobs in (None, 2)
    )
    assert one.best_score_ == two.best_score_
    file = tmp_path / "search.jsonl"
    resumed = Search(ridge, {"l2": [1.0]}, cv=3, resume=file)
    resumed.fit(X, Y, sample_weight=WEIGHT)
    with pytest.raises(StateError, match="sample_weight differ"):
        resumed.fit(X, Y, sample_weight=WEIGHT + 1)


@pytest.mark.parametrize(
    ("train", "weight", "words"),
    [
        (lambda X, y, plugins: np.ravel, WEIGHT, "a loop that takes it"),
        (Recipe(nn.Flatten, nn.MSELoss(), torch.optim.SGD, 1), WEIGHT, "write the loop by hand"),
        (ridge, WEIGHT[:-1], "one number for each of 30 rows"),
        (ridge, WEIGHT[:, None], "one number for each of 30 rows"),
        (ridge, 1.0, "one number for each of 30 rows"),
        (ridge, np.full(30, np.nan), "sample_weight holds 30 values that are NaN"),
        (ridge, np.repeat("a", 30), "must be numbers"),
    ],
)
def test_weights_that_are_none_or_go_nowhere_are_refused(train, weight, words):
    with pytest.raises(SpecError, match=words):
        Search(train, {"l2": [1.0]}, cv=3).fit(X, Y, sample_weight=weight)


# --- the edges of the grid --------------------------------------------------------------------


def scored(best):
    """A loop whose score falls with the distance from ``best``."""

    def train(X, y, plugins):
        return lambda X: np.zeros(len(X)) + abs(plugins[0].strength - best)

    return train


@pytest.mark.parametrize(
    ("best", "strengths", "edges", "told"),
    [
        (0.0, [1.0, 0.1, 0.01], {"l2": "weakest"}, "weakest of its grid, 0.01: weaker ones"),
        (5.0, [0.1, 1.0, 0.01], {"l2": "strongest"}, "strongest of its grid, 1: stronger ones"),
        (0.1, [1.0, 0.1, 0.01], {}, ""),
        (0.0, [1.0, 0.1, 0.0], {}, ""),  # nothing is weaker than none
        (0.0, [1.0, 0.1], {"l2": "weakest"}, ""),  # of two each is an end
        (0.0, [0.1], {}, ""),
    ],
)
def test_a_best_strength_at_the_edge_of_the_grid_is_told(best, strengths, edges, told, capsys):
    zeros = np.zeros(30)
    search = StrengthCV(scored(best), {"l2": strengths}, cv=3).fit(X, zeros)
    assert search.edges_ == edges
    err = capsys.readouterr().err
    assert told in err
    assert ("of its grid" in err) is bool(told)
    assert Search(scored(best), {"l2": strengths}, cv=3).fit(X, zeros).edges_ == edges
    assert capsys.readouterr().err == ""


# --- pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [False, True])
def test_the_labels_of_a_heat_map_are_not_cut(own):
    matplotlib.use("Agg")
    keys = (
        "elastic_net(_, 0.001, where='all', delivery='proximal', name='the first of the two')",
        "l2(linear(0.25, _, steps=1000), where=['weights', '0.weight'], name='the other')",
    )
    strengths = [*np.geomspace(0.0001, 0.1, 10), 0.1000001]
    search = Search(scored(0.1), dict.fromkeys(keys, strengths), cv=3).fit(X, np.zeros(30))
    ax = search.plot(pyplot.subplots(figsize=(7, 6), layout="constrained")[1] if own else None)
    figure = ax.figure
    figure.canvas.draw()
    page = figure.bbox
    for text in (ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels()):
        box = text.get_window_extent()
        assert page.x0 <= box.x0 <= box.x1 <= page.x1, text
        assert page.y0 <= box.y0 <= box.y1 <= page.y1, text
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert len({label.get_text() for label in labels}) == 11
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes))
    assert "steps=1000" in ax.get_xlabel().replace("\n", " ")
    pyplot.close("all")


# --- another default device -------------------------------------------------------------------


def on_cpu(*layers):
    return lambda: nn.Sequential(*(layer() for layer in layers))


linear = functools.partial(nn.Linear, 3, 1, dtype=torch.float64, device="cpu")
wide = functools.partial(nn.Linear, 3, 2, dtype=torch.float64, device="cpu")
sgd = functools.partial(torch.optim.SGD, lr=0.1)


@pytest.mark.parametrize(
    ("build", "loss", "y", "grid"),
    [
        (on_cpu(linear), nn.MSELoss(), Y, {"l1(_, delivery='proximal')": [0.1, 0.01]}),
        (on_cpu(linear), nn.MSELoss(), Y, {"l1": Auto(n=2), "l2": [0.1]}),
        (on_cpu(linear), nn.BCEWithLogitsLoss(), np.where(Y > 0, "a", "b"), {"l2": [0.1, 0.01]}),
        (on_cpu(wide), nn.CrossEntropyLoss(), Y > 0, {"l2(linear(0.1, _, steps=9))": [0.1, 0.0]}),
        (on_cpu(linear), nn.MSELoss(), Y, {"weight_decay": [0.1, 0.01]}),
    ],
)
@pytest.mark.filterwarnings("ignore:this Recipe's fits are trained one by one. weight_decay")
def test_a_search_works_under_another_default_device(build, loss, y, grid):
    recipe = Recipe(build, loss, sgd, epochs=4, batch_size=8)

    def run():
        search = StrengthCV(recipe, grid, cv=3, progress=False).fit(X, y)
        bare = recipe(X, y, ["l2(0.1)"])
        chances = search.predict_proba(X) if hasattr(search, "classes_") else None
        return search, bare, chances

    wanted, model, chances = run()
    torch.set_default_device("meta")
    try:
        found, other, others = run()
        assert found.score(X, y) == wanted.score(X, y)
        np.testing.assert_array_equal(found.predict(X), wanted.predict(X))
    finally:
        torch.set_default_device(None)
    assert found.batched_ == wanted.batched_
    np.testing.assert_array_equal(
        found.cv_results_["mean_test_score"], wanted.cv_results_["mean_test_score"]
    )
    assert torch.equal(next(other.parameters()), next(model.parameters()))
    np.testing.assert_array_equal(others, chances)


def test_data_in_tensors_works_under_another_default_device():
    recipe = Recipe(on_cpu(linear), nn.MSELoss(), sgd, epochs=4)
    data = torch.tensor(X), torch.tensor(Y)
    wanted = Search(recipe, {"l2": [0.1]}, cv=3).fit(*data)
    with torch.device("meta"):
        found = Search(recipe, {"l2": [0.1]}, cv=3).fit(*data)
    assert found.best_score_ == wanted.best_score_
