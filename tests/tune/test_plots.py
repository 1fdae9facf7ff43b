"""The pictures: what they draw, and where."""

import functools

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot

from regplug.errors import SpecError, UnsupportedError
from regplug.tune import Recipe, StrengthCV

rng = np.random.default_rng(0)
X = rng.normal(size=(60, 6))
Y = X @ [3.0, -2.0, 0, 0, 0, 0] + 2 * rng.normal(size=60)
PROXIMAL = "l1(_, delivery='proximal')"


@pytest.fixture(autouse=True)
def _no_windows():
    matplotlib.use("Agg")
    yield
    pyplot.close("all")


def linear(outputs=1):
    return torch.nn.Linear(6, outputs, dtype=torch.float64)


recipe = Recipe(linear, torch.nn.MSELoss(), functools.partial(torch.optim.SGD, lr=0.1), epochs=60)


def search(grid, recipe=recipe, y=Y):
    return StrengthCV(recipe, grid, cv=4, progress=False).fit(X, y)


def drawn(ax):
    """Draw for real; what matplotlib complains about is an error here."""
    ax.figure.savefig("/dev/null", format="png")
    return ax


def test_the_curve_has_the_means_their_errors_and_the_two_choices():
    strengths = [1.0, 10.0, 0.1, 0.01, 4.0]
    one = search({PROXIMAL: strengths})
    ax = drawn(one.plot())
    (curve,) = ax.containers
    line, _, (bars,) = curve
    order = np.argsort(strengths)
    np.testing.assert_allclose(line.get_xdata(), np.sort(strengths))
    np.testing.assert_allclose(line.get_ydata(), one.cv_results_["mean_test_score"][order])
    lengths = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(lengths, 2 * one.cv_results_["se_test_score"][order])
    marks = {text.get_text() for text in ax.get_legend().get_texts()}
    best, strongest = one.best_params_[PROXIMAL], one.one_se_params_[PROXIMAL]
    assert marks == {f"best: {best:.3g}", f"one standard error: {strongest:.3g}"}
    assert [line.get_xdata()[0] for line in ax.lines[-2:]] == [best, strongest]
    assert ax.get_xscale() == "log"
    (top,) = ax.child_axes
    counts = [label.get_text() for label in top.get_xticklabels()]
    assert counts == [f"{n:.0f}" for n in one.cv_results_["mean_nonzero"][order]]
    assert counts[0] == "6"
    assert counts[-1] == "0"
    assert "neg_mean_squared_error" in ax.get_ylabel()


def test_zero_has_a_place_on_the_axis_and_ones_own_axes_are_used():
    figure, own = pyplot.subplots()
    ax = drawn(search({PROXIMAL: [0.0, 0.01, 1.0]}).plot(own))
    assert ax is own
    assert len(figure.axes) == 1
    assert ax.get_xscale() == "symlog"


def test_a_heat_map_of_two_strengths():
    grid = {PROXIMAL: [1.0, 0.1], "l2": [0.1, 3.0, 0.01], "l1(_, name='third')": [0.0]}
    two = search(grid)
    ax = drawn(two.plot())
    (image,) = ax.images
    table = image.get_array()
    assert table.shape == (2, 3)
    for params, mean in zip(
        two.cv_results_["params"], two.cv_results_["mean_test_score"], strict=True
    ):
        row, column = [0.1, 1.0].index(params[PROXIMAL]), [0.01, 0.1, 3.0].index(params["l2"])
        assert table[row, column] == mean
    best, strongest = (c.get_offsets()[0].tolist() for c in ax.collections)
    assert best == [
        [0.01, 0.1, 3.0].index(two.best_params_["l2"]),
        [0.1, 1.0].index(two.best_params_[PROXIMAL]),
    ]
    assert strongest[1] == [0.1, 1.0].index(two.one_se_params_[PROXIMAL])


def test_the_path_has_every_coefficient():
    one = search({PROXIMAL: [10.0, 1.0, 0.01]})
    names = list("abcdef")
    ax = drawn(one.plot_path(names=names))
    lines = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert len(lines) == 6
    for line in lines:
        assert line.get_xdata().tolist() == [0.01, 1.0, 10.0]
        assert line.get_ydata()[-1] == 0  # all weights are zero at the strongest
    assert lines[0].get_ydata()[0] == pytest.approx(3, abs=0.7)
    assert lines[1].get_ydata()[0] == pytest.approx(-2, abs=0.7)
    assert {text.get_text() for text in ax.texts} == set(names)


def test_paths_of_several_outputs_and_strengths():
    both = np.stack([Y, Y], axis=1)
    wide = Recipe(
        functools.partial(linear, 2),
        torch.nn.MSELoss(),
        functools.partial(torch.optim.SGD, lr=0.1),
        epochs=60,
    )
    two = search({PROXIMAL: [10.0, 0.01], "l2": [0.01, 0.1]}, wide, both)
    lines = [line for line in drawn(two.plot_path()).lines if len(line.get_ydata()) == 2]
    assert len(lines) == 6 + 3  # and the line at 0, and the two marks
    assert all(np.min(line.get_ydata()) >= 0 for line in lines)


def test_what_cant_be_drawn_is_said():
    three = {PROXIMAL: [0.1, 1.0], "l2": [0.1, 1.0], "l1(_, name='third')": [0.0, 1.0]}
    with pytest.raises(UnsupportedError, match="3 vary"):
        search(three).plot()
    alone = search({PROXIMAL: [0.1]})
    with pytest.raises(SpecError, match="every key has one"):
        alone.plot()
    with pytest.raises(SpecError, match="every key has one"):
        alone.plot_path()
    with pytest.raises(SpecError, match="2 entries for 6 features"):
        search({PROXIMAL: [0.1, 1.0]}).plot_path(names=["a", "b"])

    def deep():
        return torch.nn.Sequential(linear(3), torch.nn.Linear(3, 1, dtype=torch.float64))

    network = Recipe(deep, torch.nn.MSELoss(), recipe.optimizer, epochs=2)
    with pytest.raises(UnsupportedError, match="linear models"):
        search({PROXIMAL: [0.1, 1.0]}, network).plot_path()


def test_predictors_that_hide_their_weights_have_no_counts_on_top():
    def train(X, y, plugins):
        return lambda X: np.zeros(len(X)) + plugins[0].strength

    one = StrengthCV(train, {"l1": [0.1, 1.0]}, cv=4, progress=False).fit(X, Y)
    assert not drawn(one.plot()).child_axes
    with pytest.raises(UnsupportedError, match="linear models"):
        one.plot_path()


@pytest.mark.parametrize(
    "about", [lambda m: m.forward, functools.partial, lambda m: lambda X: m(X) + 0]
)
def test_predictors_about_a_module_show_its_weights(about):
    def train(X, y, plugins):
        return about(recipe(X, y, plugins))

    grid = {PROXIMAL: [10.0, 0.01]}
    one = StrengthCV(train, grid, cv=3, progress=False).fit(torch.tensor(X), torch.tensor(Y))
    assert one.cv_results_["mean_nonzero"].tolist() == [0, 6]
    assert len(drawn(one.plot_path()).lines) > 6
