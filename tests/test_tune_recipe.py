"""Many fits as one: the same scores as one by one, whatever the optimizer, penalty and folds."""

import copy
import functools
import time
import warnings

import numpy as np
import pytest
import torch
from sklearn.model_selection import GroupKFold, KFold, PredefinedSplit
from torch import nn

import regplug
from regplug.errors import RegplugError, SelectionError, SpecError
from regplug.tune import Recipe, StrengthCV, stacked
from regplug.tune.stacked_penalty import StackedPenalty

rng = np.random.default_rng(0)
X = rng.normal(size=(47, 5))  # 3 folds of 47 rows train on 31 and on 32
Y = np.tanh(X @ rng.normal(size=(5, 2))) + 0.3 * rng.normal(size=(47, 2))
LABELS = (X[:, 0] > X[:, 1]).astype(int) + (X[:, 2] > 1)
GRID = {"l1": [0.1, 0.0], "l2(_, where='all')": [0.05, 0.001]}


def network(outputs=2, dtype=torch.float64):
    return nn.Sequential(
        nn.Linear(5, 8, dtype=dtype), nn.Tanh(), nn.Linear(8, outputs, dtype=dtype)
    )


def both(recipe, grid=GRID, X=X, y=Y, cv=3, rtol=1e-9, **settings):
    """Search with the recipe as data and as a loop; compare every score."""
    many = StrengthCV(recipe, grid, cv=cv, progress=False, **settings).fit(X, y)
    single = StrengthCV(recipe.__call__, grid, cv=cv, progress=False, **settings).fit(X, y)
    assert many.batched_
    assert not single.batched_
    for fold in range(single.n_splits_):
        name = f"split{fold}_test_score"
        np.testing.assert_allclose(many.cv_results_[name], single.cv_results_[name], rtol=rtol)
    assert many.best_params_ == single.best_params_
    np.testing.assert_array_equal(
        many.cv_results_["mean_nonzero"], single.cv_results_["mean_nonzero"]
    )
    # A penalty that does nothing would pass all of that.
    assert len(set(many.cv_results_["mean_test_score"])) == len(many.cv_results_["params"])
    return many


OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.1),
    "momentum": functools.partial(
        torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01
    ),
    "adam": functools.partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    "adamw": functools.partial(torch.optim.AdamW, lr=0.01),
    "adamax": functools.partial(torch.optim.Adamax, lr=0.01),
    "nadam": functools.partial(torch.optim.NAdam, lr=0.01),
    "radam": functools.partial(torch.optim.RAdam, lr=0.01),
    "rmsprop": functools.partial(torch.optim.RMSprop, lr=0.01, momentum=0.5, centered=True),
    "rprop": functools.partial(torch.optim.Rprop, lr=0.001),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=0.05),
    "adadelta": functools.partial(torch.optim.Adadelta, lr=1.0),
    "asgd": functools.partial(torch.optim.ASGD, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_the_list(name):
    # Rprop looks at signs of gradients, of which rounding may turn one.
    rtol = 1e-3 if name == "rprop" else 1e-9
    both(Recipe(network, nn.MSELoss(), OPTIMIZERS[name], epochs=6), cv=2, rtol=rtol)


def test_the_list_is_the_one_that_is_tested():
    tested = {call.func for call in OPTIMIZERS.values()}
    from regplug.tune.trial import ELEMENTWISE

    assert tested == ELEMENTWISE


@pytest.mark.parametrize(
    "name", ["sgd", "momentum", "adam", "adamw", "nadam", "radam", "rmsprop", "adagrad", "adadelta"]
)
def test_proximal_penalties_under_every_optimizer_that_they_know(name):
    recipe = Recipe(network, nn.MSELoss(), OPTIMIZERS[name], epochs=6)
    grid = {
        "l1(_, delivery='proximal')": [0.3, 0.0],
        "elastic_net(0.01, _, delivery='proximal', where='2.weight')": [0.1, 0.01],
    }
    found = both(recipe, grid, cv=2)
    if name == "sgd":
        assert found.cv_results_["mean_nonzero"][0] < 40


def test_single_precision_agrees_to_a_hundred_thousandth():
    recipe = Recipe(
        functools.partial(network, dtype=torch.float32), nn.MSELoss(), OPTIMIZERS["sgd"], epochs=30
    )
    both(recipe, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 16, 31, 100])
def test_batches_of_any_size(batch_size):
    both(Recipe(network, nn.MSELoss(), OPTIMIZERS["sgd"], epochs=2, batch_size=batch_size), cv=2)


def test_schedules_are_right_with_batches_too():
    grid = {
        "l1(linear(0.1, _, steps=7))": [0.0, 0.2],
        "l2(warmup(_, steps=5))": [0.1],
        "elastic_net(cosine(_, 0, steps=9), 0.0, delivery='proximal')": [0.1, 0.2],
    }
    both(Recipe(network, nn.MSELoss(), OPTIMIZERS["momentum"], epochs=4, batch_size=10), grid)


@pytest.mark.parametrize(
    "cv",
    [
        PredefinedSplit(np.repeat([0, 1, 2, -1], [3, 20, 10, 14])),
        [(np.arange(10), np.arange(10, 47)), (np.arange(10, 30), np.arange(4))],
        KFold(3, shuffle=True, random_state=0),
    ],
)
def test_folds_of_unequal_size(cv):
    both(Recipe(network, nn.MSELoss(), OPTIMIZERS["sgd"], epochs=5), cv=cv)


def test_groups_go_through():
    recipe = Recipe(network, nn.MSELoss(), OPTIMIZERS["sgd"], epochs=2)
    groups = np.sort(rng.integers(0, 9, size=47))
    search = StrengthCV(recipe, {"l2": [0.1]}, cv=GroupKFold(3), progress=False)
    assert search.fit(X, Y, groups=groups).batched_


def test_losses_other_than_mean_squares():
    classes = Recipe(functools.partial(network, 3), nn.CrossEntropyLoss(), OPTIMIZERS["sgd"], 5)
    both(classes, y=LABELS, scoring="neg_log_loss")

    def column(output, target):
        assert output.shape == target.shape
        return torch.nn.functional.smooth_l1_loss(output, target)

    one = Recipe(functools.partial(network, 1), column, OPTIMIZERS["sgd"], 5)
    both(one, y=Y[:, 0])


class Odd(nn.Module):
    """Tied weights, a frozen one, a buffer that stays, one that no row reaches, two groups."""

    def __init__(self):
        super().__init__()
        double = functools.partial(nn.Linear, dtype=torch.float64)
        self.first, self.second, self.last = double(5, 5), double(5, 5), double(5, 2)
        self.second.weight = self.first.weight
        self.unused = double(3, 3)
        self.norm = nn.LayerNorm(5, dtype=torch.float64)
        self.last.weight.requires_grad_(False)
        self.register_buffer("scale", torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x):
        return self.last(self.norm(torch.tanh(self.second(self.first(x)))) * self.scale)


def test_models_with_tied_frozen_and_unused_parameters():
    def grouped(parameters):
        matrices, others = [], []
        for p in parameters:
            (matrices if p.ndim > 1 else others).append(p)
        return torch.optim.SGD([{"params": matrices, "lr": 0.05}, {"params": others}], lr=0.2)

    recipe = Recipe(Odd, nn.MSELoss(), grouped, epochs=5)
    both(recipe)
    # What no row reaches is left alone by the operator, unless a term of the loss reaches it.
    proximal = "l1(_, delivery='proximal')"
    alone = both(recipe, {proximal: [4.0, 1.0]})
    joined = both(recipe, {proximal: [4.0, 1.0], "l2": [0.1]})
    stepped = both(recipe, {proximal: [4.0, 1.0], "l2(_, delivery='step')": [0.1]})
    counts = [s.cv_results_["mean_nonzero"].tolist() for s in (alone, joined, stepped)]
    assert counts[1][0] + 9 <= min(counts[0][0], counts[2][0])


def test_maximizing_shrinks_all_the_same():
    def gain(output, target):
        return -torch.nn.functional.mse_loss(output, target)

    climb = functools.partial(torch.optim.SGD, lr=0.1, maximize=True)
    up = both(Recipe(network, gain, climb, epochs=8))
    down = both(Recipe(network, nn.MSELoss(), OPTIMIZERS["sgd"], epochs=8))
    np.testing.assert_allclose(
        up.cv_results_["mean_test_score"], down.cv_results_["mean_test_score"], rtol=1e-9
    )


# --- formulas ---------------------------------------------------------------------------------


class Rows(regplug.Penalty):
    """λ·Σ‖row‖: not separable; its gradient comes from autograd, its step from a formula."""

    def value(self, w):
        return (w.square().sum(dim=-1) + 1e-12).sqrt().sum()

    def proximal(self, w, step):
        norms = w.square().sum(dim=-1, keepdim=True).sqrt()
        return w * (1 - step * self.strength / norms).clamp(min=0)


class Branching(regplug.Penalty):
    """A formula that looks at its strength, as no batched call may."""

    separable = True

    def value(self, w):
        return w.abs().sum()

    def gradient(self, w):
        return torch.sign(w) if self.strength > 1e-3 else w

    def proximal(self, w, step):
        if self.strength > 1e-3:
            return torch.nn.functional.softshrink(w, float(step) * self.strength)
        return w


class Bowl(regplug.Penalty):
    """Separable, with a gradient from autograd only."""

    separable = True

    def value(self, w):
        return w.cosh().log().sum()


@pytest.fixture
def formulas(monkeypatch):
    """Make the classes above known by their names in specs."""
    from regplug.discovery import catalog

    known = {"rows": Rows, "branching": Branching, "bowl": Bowl}
    real = catalog.load_class

    def load_class(name):
        return known.get(name) or real(name)

    monkeypatch.setattr(catalog, "load_class", load_class)


@pytest.mark.parametrize(
    ("spec", "way"),
    [
        ("l1", "_broadcast"),
        ("elastic_net(0.01, _)", "_broadcast"),
        ("bowl", "_broadcast"),
        ("rows", "_vmapped"),
        ("branching", "_one_by_one"),
        ("l1(_, delivery='proximal')", "_broadcast"),
        ("rows(_, delivery='proximal')", "_vmapped"),
        ("branching(_, delivery='proximal')", "_one_by_one"),
    ],
)
def test_formulas_of_every_kind_take_the_fastest_way_that_is_right(
    spec, way, formulas, monkeypatch
):
    ways = []
    choose = StackedPenalty._choose

    def choosing(self, *arguments):
        ways.append(choose(self, *arguments).__name__)
        return choose(self, *arguments)

    monkeypatch.setattr(StackedPenalty, "_choose", choosing)
    recipe = Recipe(network, nn.MSELoss(), OPTIMIZERS["sgd"], epochs=4)
    grid = {spec: [0.2, 0.01]}
    if "branching" in spec or spec == "l1":
        both(recipe, grid)
    else:
        both(recipe, grid, rtol=1e-8)
    assert set(ways) == {way}


# --- what can't be stacked --------------------------------------------------------------------


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.rand(()).item()


class Branches(nn.Linear):
    def forward(self, x):
        return (
            super().forward(x) if float(self.weight.detach().sum()) > 100 else super().forward(-x)
        )


def _with(*layers):
    def build():
        return nn.Sequential(nn.Linear(5, 4), *copy.deepcopy(layers), nn.Linear(4, 2))

    return build


sgd = OPTIMIZERS["sgd"]


@pytest.mark.parametrize(
    ("build", "optimizer", "grid", "why"),
    [
        (_with(nn.Dropout(0.5)), sgd, {"l2": [0.1]}, "draws random numbers"),
        (_with(nn.BatchNorm1d(4)), sgd, {"l2": [0.1]}, "changes its buffers"),
        (_with(), functools.partial(torch.optim.LBFGS, max_iter=2), {"l2": [0.1]}, "LBFGS"),
        (_with(), torch.optim.Adafactor, {"l2": [0.1]}, "Adafactor"),
        (_with(), sgd, {"weight_decay": [0.1]}, "weight_decay is no penalty"),
        (_with(Branches(4, 4)), sgd, {"l2": [0.1]}, "vmap can't run"),
        (_with(Noisy(4, 4)), sgd, {"l2": [0.1]}, "draws random numbers"),
    ],
)
def test_what_cant_be_stacked_is_trained_one_by_one_and_says_why(build, optimizer, grid, why):
    recipe = Recipe(build, nn.MSELoss(), optimizer, epochs=2)
    data, target = X.astype(np.float32), Y.astype(np.float32)
    with pytest.warns(UserWarning, match=f"one by one: .*{why}"):
        search = StrengthCV(recipe, grid, cv=2, progress=False).fit(data, target)
    single = StrengthCV(recipe.__call__, grid, cv=2, progress=False).fit(data, target)
    assert not search.batched_
    assert search.best_score_ == single.best_score_


def test_dropout_at_rate_zero_is_no_hindrance():
    recipe = Recipe(_with(nn.Dropout(0.0)), nn.MSELoss(), sgd, epochs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search = StrengthCV(recipe, {"l2": [0.1]}, cv=2, progress=False)
        assert search.fit(X.astype(np.float32), Y.astype(np.float32)).batched_


@pytest.mark.parametrize("limit", ["MEMORY", "PRODUCTS"])
def test_a_search_in_batches_is_the_same_and_tells_its_progress(limit, monkeypatch, capsys):
    recipe = Recipe(network, nn.MSELoss(), sgd, epochs=3)
    whole = StrengthCV(recipe, GRID, progress=False).fit(X, Y)
    with monkeypatch.context() as patch:
        patch.setattr(stacked, limit, 1)  # as if a fit filled it
        parts = StrengthCV(recipe, GRID).fit(X, Y)
    # Two sizes of folds, four strengths: at the end of each of eight batches a line may be due.
    assert len(capsys.readouterr().err.splitlines()) > 4
    np.testing.assert_allclose(
        parts.cv_results_["mean_test_score"], whole.cv_results_["mean_test_score"], rtol=1e-9
    )


def test_a_search_in_workers_or_after_a_stop_is_the_same(tmp_path):
    recipe = Recipe(network, nn.MSELoss(), sgd, epochs=3)
    whole = StrengthCV(recipe, GRID, progress=False).fit(X, Y)
    workers = StrengthCV(recipe, GRID, progress=False, n_jobs=2).fit(X, Y)
    np.testing.assert_allclose(
        workers.cv_results_["mean_test_score"], whole.cv_results_["mean_test_score"], rtol=1e-9
    )
    # Strengths that a file has already are left out.
    file = tmp_path / "search.jsonl"
    some = {**GRID, "l1": GRID["l1"][:1]}
    StrengthCV(recipe, some, progress=False, resume=file).fit(X, Y)
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-3]) + "\n")
    again = StrengthCV(recipe, GRID, progress=False, resume=file).fit(X, Y)
    np.testing.assert_allclose(
        again.cv_results_["mean_test_score"], whole.cv_results_["mean_test_score"], rtol=1e-9
    )


# --- the loop itself --------------------------------------------------------------------------


def test_it_is_a_loop_like_a_handwritten_one():
    torch.manual_seed(3)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, targets = torch.tensor(X), torch.tensor(Y)
    for _ in range(4):
        optimizer.zero_grad()
        penalty = sum(p.abs().sum() for p in model.parameters() if p.ndim > 1)
        (torch.nn.functional.mse_loss(model(inputs), targets) + 0.1 * penalty).backward()
        optimizer.step()
    before = torch.get_rng_state()
    recipe = Recipe(network, nn.MSELoss(), sgd, epochs=4, seed=3)
    found = recipe(X, Y, ["l1(0.1)"])
    assert torch.equal(torch.get_rng_state(), before)
    assert not found.training
    for one, other in zip(found.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_every_row_is_in_one_batch_of_each_epoch_in_another_order():
    recipe = Recipe(network, nn.MSELoss(), sgd, epochs=3, batch_size=4)
    batches = list(recipe.batches(10))
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    epochs = [torch.cat(batches[k : k + 3]).tolist() for k in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_scorer_may_ask_for_other_rows():
    def curious(estimator, X, y):
        assert np.allclose(estimator.predict(X[:3]), estimator.predict(X)[:3])
        return -float(np.abs(estimator.predict(X) - y).mean())

    both(Recipe(network, nn.MSELoss(), sgd, epochs=3), scoring=curious)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"build": network()}, None),
        ({"build": 3}, "build must be a callable"),
        ({"loss": "mse"}, "loss must be a callable"),
        ({"optimizer": None}, "optimizer must be a callable"),
        ({"epochs": 0}, "epochs.*0"),
        ({"epochs": 1.5}, "epochs.*1.5"),
        ({"batch_size": 0}, "batch_size.*0"),
        ({"batch_size": True}, "batch_size.*True"),
    ],
)
def test_wrong_arguments_are_named(wrong, words):
    settings = {"build": network, "loss": nn.MSELoss(), "optimizer": sgd, "epochs": 2, **wrong}
    if words is None:  # a module is callable, and what it returns for nothing is no module
        with pytest.raises(TypeError):
            Recipe(**settings)(X, Y, [])
        return
    with pytest.raises(SpecError, match=words):
        Recipe(**settings)


def test_a_build_that_returns_one_model_again_and_again_is_refused():
    model = network()
    recipe = Recipe(lambda: model, nn.MSELoss(), sgd, epochs=2)
    with pytest.raises(SpecError, match=r"new model at each call.*0\.weight"):
        StrengthCV(recipe, {"l2": [0.1]}, progress=False).fit(X, Y)


def test_wrong_returns_and_targets_are_named():
    with pytest.raises(SpecError, match="build must return"):
        Recipe(lambda: 3, nn.MSELoss(), sgd, 1)(X, Y, [])
    with pytest.raises(SpecError, match="optimizer must return"):
        Recipe(network, nn.MSELoss(), lambda p: 3, 1)(X, Y, [])
    with pytest.raises(SpecError, match="encode labels"):
        Recipe(network, nn.MSELoss(), sgd, 1)(X, np.repeat("a", 47), [])
    recipe = Recipe(network, nn.MSELoss(), sgd, 1)
    with pytest.raises(SelectionError, match="encoder"):
        StrengthCV(recipe, {"l1(_, where='encoder.*')": [1.0]}, progress=False).fit(X, Y)
    wide = np.tile(X, 2)
    with pytest.raises(RegplugError, match=r"the fit with \{'l1': 1.0\} on fold 0 failed"):
        StrengthCV(recipe, {"l1": [1.0]}, progress=False).fit(wide, Y)


def test_its_repr_is_the_same_in_every_process():
    recipe = Recipe(network, nn.MSELoss(), sgd, epochs=3)
    assert repr(recipe) == (
        f"Recipe(build={__name__}.network, loss=MSELoss(), "
        "optimizer=partial(torch.optim.sgd.SGD, lr=0.1), epochs=3, batch_size=None, seed=0)"
    )


@pytest.mark.slow
def test_the_textbook_search_is_four_times_faster_than_by_a_handwritten_loop():
    data, target = rng.normal(size=(2, 100, 10)).astype(np.float32)
    strengths = np.geomspace(1e-5, 1e-1, 6)
    grid = {"l1": strengths, "l2": strengths}

    def build():
        return nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 10))

    def by_hand(X, y, plugins):
        torch.manual_seed(0)
        model, inputs, targets = build(), torch.tensor(X), torch.tensor(y)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        l1, l2 = (plugin.strength for plugin in plugins)
        weights = [p for p in model.parameters() if p.ndim > 1]
        for _ in range(100):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(inputs), targets)
            loss = loss + l1 * sum(w.abs().sum() for w in weights)
            loss = loss + l2 * sum(w.square().sum() for w in weights)
            loss.backward()
            optimizer.step()
        return model

    recipe = Recipe(build, nn.MSELoss(), functools.partial(torch.optim.SGD, lr=0.05), epochs=100)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds, scores = [], []
        for train in (by_hand, recipe):
            StrengthCV(train, {"l1": [0.1], "l2": [0.1]}, progress=False).fit(data, target)
            began = time.process_time()  # of the processor: others may be at work
            search = StrengthCV(train, grid, progress=False).fit(data, target)
            seconds.append(time.process_time() - began)
            scores.append(search.cv_results_["mean_test_score"])
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(*scores, rtol=1e-5)
    assert seconds[0] / seconds[1] >= 4
