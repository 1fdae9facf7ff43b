"""A network and a grid that are searched one by one and as one."""

import functools

import numpy as np
import torch
from torch import nn

from regplug.tune import StrengthCV

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

sgd = OPTIMIZERS["sgd"]
