"""Many fits as one: the same scores as one by one, whatever the optimizer and the folds."""

import functools
import time

import numpy as np
import pytest
import torch
from sklearn.model_selection import GroupKFold, KFold, PredefinedSplit
from torch import nn

from regplug.errors import RegplugError, SelectionError, SpecError
from regplug.tune import Recipe, StrengthCV
from tests.tune.many_fits import LABELS, OPTIMIZERS, X, Y, both, network, rng, sgd


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
        f"Recipe(build={network.__module__}.network, loss=MSELoss(), "
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
