"""The loss decides the target's type and shape: whole numbers as well as floats, no broadcast."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import regplug
from regplug.errors import RegplugError, SpecError
from regplug.tune import Recipe, StrengthCV

rng = np.random.default_rng(0)
X = rng.normal(size=(47, 3)).astype(np.float32)
COUNTS = rng.poisson(np.exp(0.8 * X[:, 0] - 0.5 * X[:, 1] + 1)).astype(np.int64)
sgd = functools.partial(torch.optim.SGD, lr=0.05)
GRID = {"l2": [1.0, 0.01]}


def column():
    return nn.Linear(3, 1)


def flat():
    return nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))


def search(loss, y, build=column, X=X, grid=GRID, epochs=100, batch_size=None, **settings):
    recipe = Recipe(build, loss, sgd, epochs, batch_size)
    return StrengthCV(recipe, grid, cv=3, progress=False, **settings).fit(X, y)


class Scaled(nn.Module):
    def forward(self, output, target):
        return 0.5 * F.mse_loss(output, target)


def by_operators(output, target):
    return (output - target).square().mean()


def squeezing(output, target):
    return F.mse_loss(output.squeeze(-1), target.float())


def log_cosh(output, target):
    return torch.log(torch.cosh(target.float() - output[:, 0])).mean()


LOSSES = {
    "mse": nn.MSELoss(),
    "l1": nn.L1Loss(),
    "huber": nn.HuberLoss(),
    "smooth_l1": nn.SmoothL1Loss(),
    "poisson": nn.PoissonNLLLoss(),
    "poisson of rates": nn.PoissonNLLLoss(log_input=False),
    "functional": F.mse_loss,
    "partial": functools.partial(F.huber_loss, delta=2.0),
    "lambda": lambda output, target: 2 * F.l1_loss(output, target),
    "module": Scaled(),
    "operators": by_operators,
    "squeezing": squeezing,
    "indexing": log_cosh,
}
FLAT = set(LOSSES) - {"squeezing", "indexing"}


def positive():
    return nn.Sequential(nn.Linear(3, 1), nn.Softplus())


def same(one, other):
    for fold in range(3):
        name = f"split{fold}_test_score"
        np.testing.assert_array_equal(one.cv_results_[name], other.cv_results_[name])
    assert one.best_params_ == other.best_params_
    assert one.batched_ == other.batched_
    np.testing.assert_array_equal(one.predict(X), other.predict(X))
    assert one.predict(X).shape == (47,)


@pytest.mark.parametrize("name", LOSSES)
def test_whole_numbers_are_as_good_as_floats_for_every_loss_of_values(name):
    build = positive if name == "poisson of rates" else column
    floats = search(LOSSES[name], COUNTS.astype(float), build)
    same(search(LOSSES[name], COUNTS, build), floats)
    assert floats.batched_
    assert len(set(floats.cv_results_["mean_test_score"])) == 2
    if name in FLAT and build is column:
        same(search(LOSSES[name], COUNTS, flat), floats)
    # A model that was trained on a broadcast predicts about the mean everywhere.
    assert np.corrcoef(floats.predict(X), COUNTS)[0, 1] > 0.6


def by_hand(y):
    """Gradient descent as torch's users write it, of a target that is right."""
    torch.manual_seed(0)
    model = column()
    optimizer = sgd(model.parameters())
    inputs, target = torch.tensor(X), torch.tensor(y, dtype=torch.float32)[:, None]
    for _ in range(100):
        optimizer.zero_grad()
        loss = F.mse_loss(model(inputs), target) + 0.01 * model.weight.square().sum()
        loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("name", ["mse", "functional", "operators", "squeezing"])
@pytest.mark.parametrize("build", [column, flat])
def test_a_recipe_trains_what_a_loop_by_hand_trains(name, build):
    if build is flat and name == "squeezing":
        pytest.skip("its own squeeze is for columns")
    recipe = Recipe(build, LOSSES[name], sgd, 100)
    found = recipe(X, COUNTS, ["l2(0.01)"])
    wanted = by_hand(COUNTS)
    torch.testing.assert_close(next(found.parameters()), wanted.weight, rtol=1e-5, atol=1e-6)


KINDS = {
    **{t: functools.partial(np.asarray, dtype=t) for t in ("i1", "i2", "i4", "i8", "u1", "u2")},
    **{t: functools.partial(np.asarray, dtype=t) for t in ("u4", "u8", ">i4")},
    "list": lambda y: y.tolist(),
    "tensor": torch.tensor,
    "uint8 tensor": lambda y: torch.tensor(y, dtype=torch.uint8),
    "int32 tensor": lambda y: torch.tensor(y, dtype=torch.int32),
    "series": lambda y: pd.Series(y, index=range(100, 147)),
    "nullable": lambda y: pd.Series(y, dtype="Int64"),
    "objects": lambda y: y.astype(object),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_of_every_type(kind):
    floats = search(nn.MSELoss(), COUNTS.astype(float))
    same(search(nn.MSELoss(), KINDS[kind](COUNTS)), floats)


@pytest.mark.parametrize("kind", ["bool", "bool tensor", "boolean series", "list of bools"])
def test_truth_values_are_zero_and_one_for_a_loss_of_values(kind):
    y = COUNTS > 2
    made = {
        "bool": y,
        "bool tensor": torch.tensor(y),
        "boolean series": pd.Series(y, dtype="boolean"),
        "list of bools": y.tolist(),
    }
    same(search(nn.MSELoss(), made[kind]), search(nn.MSELoss(), y.astype(float)))


@pytest.mark.parametrize("scoring", [None, "r2", "neg_mean_absolute_error"])
@pytest.mark.parametrize("batch_size", [1, 10])
def test_scores_and_batches_of_whole_numbers(scoring, batch_size):
    settings = {"scoring": scoring, "batch_size": batch_size, "epochs": 2}
    floats = search(nn.MSELoss(), COUNTS * 1.0, **settings)
    same(search(nn.MSELoss(), COUNTS, **settings), floats)
    one_by_one = Recipe(column, nn.MSELoss(), sgd, 2, batch_size).__call__
    single = StrengthCV(one_by_one, GRID, cv=3, progress=False, scoring=scoring).fit(X, COUNTS)
    np.testing.assert_allclose(
        single.cv_results_["mean_test_score"], floats.cv_results_["mean_test_score"], rtol=1e-4
    )


def test_columns_of_whole_numbers():
    both = np.stack([COUNTS, COUNTS[::-1]], axis=1)
    wide = functools.partial(nn.Linear, 3, 2)
    floats = search(nn.MSELoss(), both.astype(float), wide)
    found = search(nn.MSELoss(), both, wide)
    for one in (floats, found, search(nn.MSELoss(), pd.DataFrame(both), wide)):
        assert one.predict(X).shape == (47, 2)
        assert one.best_score_ == floats.best_score_
    # A column of one is a column in the predictions, as with scikit-learn.
    for build in (column, flat):
        alone = search(nn.MSELoss(), COUNTS[:, None], build)
        assert alone.predict(X).shape == (47, 1)
        assert alone.best_score_ == search(nn.MSELoss(), COUNTS).best_score_


def test_maps_keep_their_shape():
    pictures = rng.normal(size=(12, 2, 5, 4)).astype(np.float32)
    masks = (pictures[:, 0] > 0).astype(int)

    def build():
        return nn.Conv2d(2, 1, 1)

    for loss in (nn.MSELoss(), nn.BCEWithLogitsLoss()):
        recipe = Recipe(build, loss, sgd, 5)
        found = recipe(pictures, masks, []).weight
        wanted = recipe(pictures, masks[:, None].astype(np.float32), []).weight
        torch.testing.assert_close(found, wanted)


def test_an_automatic_grid_of_whole_numbers():
    def zeros():
        model = nn.Linear(3, 1)
        nn.init.zeros_(model.weight)
        return model

    grid = {"l1": regplug.tune.Auto(n=3)}
    ints, floats = (search(nn.MSELoss(), y, zeros, grid=grid) for y in (COUNTS, COUNTS * 1.0))
    same(ints, floats)
    assert ints.best_params_ == floats.best_params_


def test_a_journal_goes_on(tmp_path):
    file = tmp_path / "search.jsonl"
    whole = search(nn.MSELoss(), COUNTS, resume=file)
    file.write_text("\n".join(file.read_text().splitlines()[:-2]) + "\n")
    same(search(nn.MSELoss(), COUNTS, resume=file, n_jobs=2), whole)


# --- what can't be trained on -----------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float32, np.int64])
@pytest.mark.parametrize(
    "loss", [nn.MSELoss(), F.l1_loss, by_operators, Scaled(), lambda o, t: (t - o).abs().mean()]
)
@pytest.mark.parametrize(("outputs", "shape"), [(3, 47), (1, (47, 3)), (47, 47), (3, (47, 1))])
def test_a_shape_that_would_broadcast_is_never_trained_on(loss, kind, outputs, shape):
    y = np.resize(COUNTS, shape).astype(kind)
    build = functools.partial(nn.Linear, 3, outputs)
    with pytest.raises(SpecError, match=r"can't take an output of shape \(n, .*y of shape \(n"):
        search(loss, y, build)
    with pytest.raises(SpecError, match="one output for each column of y"):
        Recipe(build, loss, sgd, 2)(X, y, [])


def test_what_somebody_spreads_on_purpose_is_theirs():
    quantiles = torch.tensor([0.1, 0.5, 0.9])

    def pinball(output, target):
        error = target.unsqueeze(-1) - output
        return torch.maximum(quantiles * error, (quantiles - 1) * error).mean()

    def variances(output, target):
        return F.gaussian_nll_loss(output[:, 0], target, output[:, 1].exp())

    for loss, outputs in ((pinball, 3), (variances, 2)):
        recipe = Recipe(functools.partial(nn.Linear, 3, outputs), loss, sgd, 5)
        ints, floats = (recipe(X, y, []).weight for y in (COUNTS, COUNTS.astype(float)))
        assert torch.equal(ints, floats)


def test_a_loss_that_raises_says_so_itself():
    def broken(output, target):
        raise ZeroDivisionError("no luck")

    with pytest.raises(RegplugError, match="ZeroDivisionError: no luck"):
        search(broken, LABELS)


# --- classes in floats ------------------------------------------------------------------------


LABELS = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0.5)


def scores():
    return nn.Linear(3, 3)


def log_scores():
    return nn.Sequential(nn.Linear(3, 3), nn.LogSoftmax(1))


@pytest.mark.parametrize(
    ("loss", "build"),
    [
        (nn.CrossEntropyLoss(), scores),
        (F.cross_entropy, scores),
        (lambda output, target: 2 * F.cross_entropy(output, target), scores),
        (nn.NLLLoss(), log_scores),
        (lambda output, target: F.nll_loss(output.log_softmax(1), target), scores),
        (lambda o, t: -o.log_softmax(1).gather(1, t[:, None]).mean(), scores),
    ],
)
def test_labels_that_are_floats_or_columns_are_labels_for_a_loss_of_classes(loss, build):
    plain = search(loss, LABELS, build)
    assert plain.best_score_ > 0.7
    assert plain.classes_.tolist() == [0, 1, 2]
    for y in (LABELS.astype(np.uint8), LABELS[:, None], pd.Series(LABELS, dtype="Int64")):
        found = search(loss, y, build)
        assert found.best_score_ == plain.best_score_
        np.testing.assert_array_equal(found.predict(X), plain.predict(X))
    found = Recipe(build, loss, sgd, 100)(X, LABELS.astype(float), [])
    wanted = Recipe(build, loss, sgd, 100)(X, LABELS, [])
    assert torch.equal(next(found.parameters()), next(wanted.parameters()))


def test_floats_are_scored_as_the_classes_that_their_loss_learns():
    ints, floats = (search(nn.CrossEntropyLoss(), y, scores) for y in (LABELS, LABELS * 1.0))
    np.testing.assert_array_equal(floats.predict(X), ints.predict(X))
    assert floats.best_score_ == ints.best_score_ > 0.7  # accuracy, of stratified folds


@pytest.mark.parametrize("names", [[5, 7, 9], [-1, 0, 1], ["a", "b", "c"], [1, 2, 3]])
def test_labels_of_any_kind_are_numbered_in_order(names):
    y = np.array(names)[LABELS]
    plain, found = (search(nn.CrossEntropyLoss(), labels, scores) for labels in (LABELS, y))
    assert found.best_score_ == plain.best_score_
    np.testing.assert_array_equal(found.predict(X), np.array(names)[plain.predict(X)])
    np.testing.assert_array_equal(found.predict_proba(X), plain.predict_proba(X))


def test_shares_of_classes_are_scored_as_shares():
    shares = np.exp(X @ rng.normal(size=(3, 3)))
    shares = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    found = search(nn.CrossEntropyLoss(), shares, scores, epochs=300, grid={"l2": [1.0, 0.0]})
    np.testing.assert_allclose(found.predict(X).sum(axis=1), 1, rtol=1e-5)
    assert found.best_params_ == {"l2": 0.0}
    assert found.best_score_ > -0.01  # the mean square of shares, not of their logarithms
    hot = np.eye(3, dtype=int)[LABELS]
    picked = search(nn.CrossEntropyLoss(), hot, scores)
    np.testing.assert_array_equal(
        picked.predict(X).argmax(1), search(nn.CrossEntropyLoss(), LABELS, scores).predict(X)
    )
    assert (picked.predict(X).sum(axis=1) == 1).all()


@pytest.mark.parametrize(
    ("loss", "build", "y", "words"),
    [
        (nn.CrossEntropyLoss(), column, LABELS, "one output is 0 whatever"),
        (nn.CrossEntropyLoss(), column, LABELS * 1.0, "one output is 0 whatever"),
        (nn.CrossEntropyLoss(), scores, LABELS + 0.5, "is for classes, and y holds 0.5, 1.5"),
        (nn.CrossEntropyLoss(), scores, LABELS * (X[:, 2] > 0) + 3, "3 outputs: encode|3, 4"),
        (nn.CrossEntropyLoss(), scores, np.arange(47), "y holds 0, 1, 2, 3 … 46.*3 outputs"),
        (nn.MSELoss(), column, np.array(["a", "b", "c"])[LABELS], "encode labels"),
        (nn.HingeEmbeddingLoss(), column, LABELS % 2, "-1 and 1, and y holds 0, 1"),
    ],
)
def test_what_a_loss_cant_learn_is_refused(loss, build, y, words):
    if words.startswith("3 outputs"):
        y = np.where(LABELS == 2, 9, LABELS + 3) * np.where(np.arange(47) == 0, 2, 1)
        words = "3 outputs: encode labels as 0 … 2"
    with pytest.raises(SpecError, match=words):
        search(loss, y, build)
