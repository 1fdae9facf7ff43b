"""Two classes by one score, and many classes by one score each: as scikit-learn has them."""

import functools
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from torch import nn

import regplug
from regplug.errors import RegplugError, SpecError
from regplug.tune import Recipe, StrengthCV

# torch says so where a loss is run model by model, as it does of soft_margin_loss.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

rng = np.random.default_rng(1)
X = rng.normal(size=(60, 3))
Y = (X[:, 0] - 0.5 * X[:, 1] + 0.8 * rng.normal(size=60) > 0.4).astype(int)
MANY = np.stack([Y, X[:, 1] > 0.2, X @ [1.0, 1.0, -1.0] > 0], axis=1).astype(int)
GRID = {"l2": [1.0, 0.05]}
CV = StratifiedKFold(3)
sgd = functools.partial(torch.optim.SGD, lr=1.0, momentum=0.5)
LABELS = {
    "int": Y,
    "uint8": Y.astype(np.uint8),
    "bool": Y.astype(bool),
    "one and two": Y + 1,
    "signs": 2 * Y - 1,
    "strings": np.where(Y, "yes", "no"),
    "objects": np.where(Y, "yes", "no").astype(object),
    "floats": Y * 1.0,
    "column": Y[:, None],
    "tensor": torch.tensor(Y),
    "truth": torch.tensor(Y).bool(),
    "list": np.where(Y, "yes", "no").tolist(),
    "series": pd.Series(np.where(Y, "yes", "no"), index=range(5, 65)),
    "category": pd.Series(np.where(Y, "yes", "no"), dtype="category"),
    "nullable": pd.Series(Y, dtype="Int64"),
}


def one(outputs=1):
    model = nn.Linear(3, outputs, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def flat():
    return nn.Sequential(one(), nn.Flatten(0))


def chance(outputs=1):
    return nn.Sequential(one(outputs), nn.Sigmoid())


def numbers(y):
    """0 and 1, however the labels are written."""
    return np.unique(np.asarray(y), return_inverse=True)[1].reshape(-1)


def loop(X, y, plugins, build=one, loss=F.binary_cross_entropy_with_logits, about=None):
    """A loop written by hand, which returns its module (or something about it)."""
    model = build()
    y = np.asarray(y)
    target = y if y.ndim == 2 and y.shape[1] > 1 else numbers(y).reshape(-1, 1)
    inputs, target = torch.tensor(X), torch.tensor(target, dtype=torch.float64)
    optimizer = sgd(model.parameters())
    with regplug.attach(model, optimizer, plugins):
        for _ in range(200):
            optimizer.zero_grad()
            output = model(inputs)
            loss(output, target.reshape(output.shape)).backward()
            optimizer.step()
    return model if about is None else about(model)


def logistic(strength, n, many=False):
    """Return scikit-learn's: Σ log-loss + ½‖w‖²/C is n times the mean loss + λ‖w‖²."""
    alone = LogisticRegression(C=1 / (2 * strength * n), tol=1e-10, max_iter=10_000)
    return OneVsRestClassifier(alone) if many else alone


def right(search, y, scoring, many=False, X=X):
    """Compare every score, and what the search says of all rows, with scikit-learn's."""
    scorer, y = get_scorer(scoring), np.asarray(y)
    y = y.ravel() if y.shape[1:] == (1,) else y
    splits = list((KFold(3) if many else CV).split(X, None if many else numbers(y)))
    for index, strength in enumerate(GRID["l2"]):
        for k, (train, test) in enumerate(splits):
            theirs = logistic(strength, len(train), many).fit(X[train], y[train])
            wanted = scorer(theirs, X[test], y[test])
            got = search.cv_results_[f"split{k}_test_score"][index]
            assert got == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    theirs = logistic(search.best_params_["l2"], len(X), many).fit(X, y)
    np.testing.assert_array_equal(search.classes_, theirs.classes_)
    predicted = search.predict(X)
    np.testing.assert_array_equal(predicted, theirs.predict(X))
    assert predicted.shape == theirs.predict(X).shape
    chances, scores = theirs.predict_proba(X), theirs.decision_function(X)
    np.testing.assert_allclose(search.predict_proba(X), chances, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(search.decision_function(X), scores, rtol=1e-4, atol=1e-5)
    assert search.score(X, y) == pytest.approx(scorer(theirs, X, y), rel=1e-4)


def searched(train, y, scoring=None, cv=3, grid=GRID):
    return StrengthCV(train, grid, cv=cv, scoring=scoring, progress=False).fit(X, y)


def binary(build=one, loss=None, epochs=200):
    return Recipe(build, loss or nn.BCEWithLogitsLoss(), sgd, epochs)


@pytest.mark.parametrize("scoring", ["accuracy", "f1", "roc_auc", "neg_log_loss"])
@pytest.mark.parametrize("train", [binary(), binary().__call__, loop])
def test_one_logit_is_logistic_regression(train, scoring):
    search = searched(train, Y, scoring)
    right(search, Y, scoring)
    assert search.batched_ is isinstance(train, Recipe)


def twice_softplus(output, target):
    return 2 * (F.softplus(output) - target * output).mean() / 2


def on_chances(output, target):
    return F.binary_cross_entropy(torch.sigmoid(output), target)


@pytest.mark.parametrize(
    ("build", "loss"),
    [
        (flat, nn.BCEWithLogitsLoss()),
        (one, F.binary_cross_entropy_with_logits),
        (one, lambda output, target: F.binary_cross_entropy_with_logits(output[:, 0], target)),
        (chance, nn.BCELoss()),
        (one, on_chances),
        (one, nn.SoftMarginLoss()),
        (one, twice_softplus),
    ],
)
def test_every_loss_of_one_logit(build, loss):
    search = searched(binary(build, loss), Y, "neg_log_loss")
    right(search, Y, "neg_log_loss")
    assert search.batched_
    right(searched(binary(build, loss), Y), Y, "accuracy")


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("train", [binary(), loop])
def test_labels_of_every_kind(train, kind):
    scoring = "accuracy" if kind in ("column", "floats", "signs") else "neg_log_loss"
    right(searched(train, LABELS[kind], scoring), LABELS[kind], scoring)


def test_labels_of_every_kind_for_signs():
    for kind in ("int", "strings", "signs", "one and two", "bool"):
        search = searched(binary(loss=nn.SoftMarginLoss()), LABELS[kind], "roc_auc")
        right(search, LABELS[kind], "roc_auc")


def shown(model):
    return lambda X: model(torch.tensor(X)).detach().numpy()


def shown_chances(model):
    return lambda X: torch.sigmoid(model(torch.tensor(X)))[:, 0].detach().numpy()


@pytest.mark.parametrize(
    "train",
    [
        functools.partial(loop, build=flat),
        functools.partial(loop, build=chance, loss=F.binary_cross_entropy),
        functools.partial(loop, about=lambda model: nn.Sequential(model, nn.Sigmoid())),
        functools.partial(loop, about=lambda model: nn.Sequential(model, nn.Flatten(0))),
        functools.partial(loop, about=lambda model: lambda X: model(torch.tensor(X))),
        functools.partial(loop, about=shown),
        functools.partial(loop, about=shown_chances),
    ],
)
def test_handwritten_loops_may_return_logits_or_chances_of_any_shape(train):
    right(searched(train, Y, "neg_log_loss"), Y, "neg_log_loss")


@pytest.mark.parametrize("scoring", ["accuracy", "f1_macro", "f1_samples", "roc_auc"])
@pytest.mark.parametrize(
    "train",
    [
        binary(functools.partial(one, 3)),
        binary(functools.partial(chance, 3), nn.BCELoss()),
        functools.partial(loop, build=functools.partial(one, 3)),
        functools.partial(loop, build=functools.partial(chance, 3), loss=F.binary_cross_entropy),
    ],
)
def test_many_labels_at_once(train, scoring):
    # The mean over columns, beside which each column's own λ‖w‖² is a third of it.
    mean = {"l2": [strength / 3 for strength in GRID["l2"]]}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "F-score is ill-defined")
        search = searched(train, MANY, scoring, grid=mean)
    search.best_params_["l2"] *= 3
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "F-score is ill-defined")
        right(search, MANY, scoring, many=True)


@pytest.mark.parametrize("kind", [float, bool, np.uint8, "frame", "tensor"])
def test_many_labels_of_every_type(kind):
    made = {"frame": pd.DataFrame, "tensor": torch.tensor}.get(kind, lambda y: y.astype(kind))
    recipe = binary(functools.partial(one, 3))
    found, plain = searched(recipe, made(MANY)), searched(recipe, MANY)
    assert found.best_score_ == plain.best_score_ > 0.4
    np.testing.assert_array_equal(found.predict(X), plain.predict(X))
    assert found.predict(X).shape == (60, 3)


def test_least_squares_of_two_classes_may_be_scored_as_classes():
    recipe = binary(loss=nn.MSELoss(), epochs=100)
    recipe.optimizer = functools.partial(torch.optim.SGD, lr=0.1)
    search = searched(recipe, Y, "accuracy")
    model = search.best_model_
    values = model(torch.tensor(X)).detach().numpy()[:, 0]
    np.testing.assert_array_equal(search.predict(X), values > 0.5)
    np.testing.assert_allclose(search.decision_function(X), values - 0.5)
    with pytest.raises(RegplugError, match="BCEWithLogitsLoss"):
        search.predict_proba(X)
    assert not hasattr(searched(recipe, Y), "predict_proba")  # values, by default


def test_a_search_of_two_classes_goes_through_workers_and_scikit_learn(tmp_path):
    names, file = LABELS["strings"], tmp_path / "search.jsonl"
    whole = searched(binary(), names, "roc_auc")
    spread = StrengthCV(
        binary(), GRID, cv=3, scoring="roc_auc", progress=False, n_jobs=2, resume=file
    ).fit(X, names)
    again = StrengthCV(binary(), GRID, cv=3, scoring="roc_auc", progress=False, resume=file).fit(
        X, names
    )
    for search in (spread, again):
        np.testing.assert_allclose(
            search.cv_results_["mean_test_score"], whole.cv_results_["mean_test_score"], rtol=1e-9
        )
    nested = StrengthCV(binary(), GRID, cv=3, progress=False)
    chances = cross_val_predict(nested, X, names, cv=3, method="predict_proba")
    assert chances.shape == (60, 2)
    assert get_scorer("roc_auc")._score_func(names == "yes", chances[:, 1]) > 0.7


def test_a_fold_without_a_class_knows_both():
    order = np.argsort(Y, kind="stable")
    names = LABELS["strings"][order]
    ones = int(Y.sum())
    cv = [(np.arange(60 - ones, 60), np.arange(60 - ones)), (np.arange(0, 60, 2), np.arange(1, 60))]
    for train in (binary(), binary(loss=nn.SoftMarginLoss())):
        search = StrengthCV(train, GRID, cv=cv, progress=False).fit(X[order], names)
        # Trained on "yes" alone, it says "yes" of every "no".
        assert search.cv_results_["split0_test_score"].tolist() == [0, 0]


def test_compiled_and_half_models_are_read_alike():
    plain = searched(loop, Y)

    class Compiled(nn.Module):
        """As ``torch.compile`` wraps a module."""

        def __init__(self, module):
            super().__init__()
            self._orig_mod = module

        def forward(self, x):
            return self._orig_mod(x)

    wrapped = functools.partial(loop, about=Compiled)
    np.testing.assert_array_equal(searched(wrapped, Y).predict(X), plain.predict(X))
    recipe = binary(lambda: one().bfloat16())
    assert set(searched(recipe, Y).predict(X)) <= {0, 1}


def test_scores_that_are_shares_already_are_not_turned_again():
    def softmaxed(X, y, plugins):
        def build():
            return nn.Sequential(one(2), nn.Softmax(1))

        def loss(output, target):
            return F.nll_loss(output.log(), target[:, 0].long())

        model = build()
        inputs, target = torch.tensor(X), torch.tensor(y)[:, None]
        optimizer = sgd(model.parameters())
        for _ in range(50):
            optimizer.zero_grad()
            loss(model(inputs), target).backward()
            optimizer.step()
        return model

    search = searched(softmaxed, Y, "neg_log_loss")
    shares = search.best_model_(torch.tensor(X)).detach().numpy()
    np.testing.assert_allclose(search.predict_proba(X), shares, rtol=1e-12)


# --- what can't be known, and what can't be ---------------------------------------------------


@pytest.mark.parametrize("about", [None, shown])
def test_values_of_a_handwritten_loop_that_look_like_no_logits_are_doubted(about):
    slow = functools.partial(torch.optim.SGD, lr=0.1)

    def least_squares(X, y, plugins):
        model = one()
        optimizer = slow(model.parameters())
        for _ in range(100):
            optimizer.zero_grad()
            F.mse_loss(model(torch.tensor(X))[:, 0], torch.tensor(y) * 1.0).backward()
            optimizer.step()
        return model if about is None else about(model)

    with pytest.warns(UserWarning, match="looks like probabilities or like values of 0 and 1"):
        searched(least_squares, Y)


def test_chances_by_numpy_are_doubted():
    def train(X, y, plugins):
        model = loop(X, y, plugins)
        return lambda X: 1 / (1 + np.exp(-shown(model)(X)))

    with pytest.warns(UserWarning, match="end in a sigmoid"):
        searched(train, Y)


@pytest.mark.parametrize(
    ("loss", "y", "words"),
    [
        (nn.BCEWithLogitsLoss(), np.arange(60) % 3, "two classes, .* and y holds 0, 1, 2"),
        (nn.BCEWithLogitsLoss(), np.repeat(["a", "b", "c"], 20), "y holds 3 labels"),
        (nn.BCEWithLogitsLoss(), X[:, 0] * 3, "values from 0 to 1, and y holds -"),
        (nn.SoftMarginLoss(), np.arange(60) % 3, "for -1 and 1, and y holds 0, 1, 2"),
        (nn.HingeEmbeddingLoss(), Y, "for -1 and 1, and y holds 0, 1"),
        (lambda o, t: (1 - t * o).clamp(min=0).mean(), Y, "labels -1 and 1"),
        (nn.BCEWithLogitsLoss(), MANY, r"output of shape \(n, 1\) with a y of shape \(n, 3\)"),
    ],
)
def test_what_one_logit_cant_tell_is_refused(loss, y, words):
    with pytest.raises(SpecError, match=words):
        searched(binary(loss=loss), y)


def test_a_hinge_is_a_score_of_signs():
    def hinge(output, target):
        return (1 - target * output).clamp(min=0).mean()

    search = searched(binary(loss=hinge, epochs=50), 2 * Y - 1, "accuracy")
    model = search.best_model_
    wanted = np.where(model(torch.tensor(X)).detach().numpy()[:, 0] > 0, 1, -1)
    np.testing.assert_array_equal(search.predict(X), wanted)
    assert search.best_score_ > 0.7


def test_soft_labels_are_scored_as_chances():
    soft = 1 / (1 + np.exp(-(X @ [1.0, -1.0, 0.5])))
    search = searched(binary(), soft, grid={"l2": [1.0, 0.0]})
    assert search.best_params_ == {"l2": 0.0}
    assert search.best_score_ > -1e-3
    np.testing.assert_allclose(search.predict(X), soft, atol=0.05)
