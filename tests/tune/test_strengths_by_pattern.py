"""Searches over strengths by pattern: a placeholder and a list of strengths for each pattern."""

import numpy as np
import pytest
import torch

import regplug
from regplug.errors import SpecError
from regplug.tune.grid import Auto, Grid
from tests.tune.rows import Search, X, Y

SPEC = "l1({'0.*': _, '*': _})"


def train(X, y, plugins):
    torch.manual_seed(0)
    inputs, targets = torch.tensor(X), torch.tensor(y)[:, None]
    layers = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
    model = torch.nn.Sequential(*layers).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, plugins):
        for _ in range(15):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
    return model


def test_every_combination_is_tried_with_its_own_spec():
    search = Search(train, {SPEC: {"0.*": [0.0, 0.5], "*": [0.01, 0.1]}}, cv=3).fit(X, Y)
    assert len(search.cv_results_["mean_test_score"]) == 4
    best = {key.removeprefix(SPEC).strip(): value for key, value in search.best_params_.items()}
    assert set(best) == {"0.*", "*"}
    written = f"l1({{'0.*': {best['0.*']}, '*': {best['*']}}})"
    alone = Search(train, {"l1({'0.*': _, '*': " + f"{best['*']}" + "})": [best["0.*"]]}, cv=3)
    alone.fit(X, Y)
    np.testing.assert_array_equal(
        max(search.cv_results_["mean_test_score"]), alone.cv_results_["mean_test_score"]
    )
    assert Grid({SPEC: {"0.*": [best["0.*"]], "*": [best["*"]]}}).specs(
        {f"{SPEC} 0.*": best["0.*"], f"{SPEC} *": best["*"]}
    ) == [written]


@pytest.mark.parametrize(
    ("key", "values", "says"),
    [
        (SPEC, {"0.*": [0.1]}, "must list the strengths of the patterns 0.*, *"),
        (SPEC, {"0.*": [0.1], "*": "auto"}, "'auto' finds one strength for all"),
        (SPEC, {"0.*": [0.1], "*": []}, "is empty"),
        (SPEC, [0.1], "2 placeholders"),
        ("l1(_)", {"*": [0.1]}, "a placeholder _ for each pattern"),
        ("elastic_net({'*': _}, {'*': _})", {"*": [0.1]}, "two placeholders for '*'"),
        ("l1({'*': _}, where=_)", {"*": [0.1]}, "nowhere else"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(key, values, says):
    with pytest.raises(SpecError) as refused:
        Grid({key: values})
    assert says in str(refused.value)


def test_auto_stands_beside_strengths_by_pattern_and_not_on_them():
    """The other plugin of a search for the largest strength is there once."""
    grid = {"l1(_, where='0.*')": "auto", "l2({'0.*': _, '1.*': _})": {"0.*": [0.1], "1.*": [0.2]}}
    seen = []

    def watched(X, y, plugins):
        seen.append([plugin.name for plugin in plugins])
        return train(X, y, plugins)

    key, *_ = grid
    grid[key] = Auto(eps=0.1, n=2)
    Search(watched, grid, cv=3).fit(X, Y)
    assert set(map(tuple, seen)) == {("l1", "l2")}
    for spec in ("l1({'0.*': _, '*': 0.1})", "l1(per_layer(_, decay=0.5))"):
        with pytest.raises(SpecError, match=r"'auto' finds one strength for all .* list them"):
            Search(train, {spec: "auto"}, cv=3).fit(X, Y)


@pytest.mark.parametrize("head", ["./mine.py:Mine", "mine.py"])
def test_a_plugin_of_a_file_is_searched_as_any(head, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import regplug\nclass Mine(regplug.Penalty):\n    separable = True\n"
        "    def value(self, w):\n        return w.abs().sum()\n"
    )
    by_file = Search(train, {f"{head}({{'0.*': _, '*': _}})": {"0.*": [0.5], "*": [0.1]}}, cv=3)
    by_name = Search(train, {SPEC: {"0.*": [0.5], "*": [0.1]}}, cv=3)
    scores = [s.fit(X, Y).cv_results_["mean_test_score"] for s in (by_file, by_name)]
    np.testing.assert_allclose(*scores)
    assert Grid({f"{head}": [0.5]}).specs({head: 0.5}) == [f"{head}(0.5)"]
