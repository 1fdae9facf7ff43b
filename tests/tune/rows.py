"""A few rows, and a ridge regression on them written by hand."""

import functools

import numpy as np
from sklearn.linear_model import Ridge

from regplug.tune import StrengthCV

N = 30
X = np.random.default_rng(0).normal(size=(N, 3))
Y = X @ [2.0, 0.0, -1.0] + np.random.default_rng(1).normal(size=N)
LABELS = np.where(X[:, 0] + 0.3 * X[:, 1] > 0, "yes", "no")
Search = functools.partial(StrengthCV, progress=False)


def ridge(X, y, plugins):
    """A loop without steps: the closed form, with the strength of the plugin it was given."""
    (plugin,) = plugins
    alpha = 2 * len(X) * plugin.strength  # λ·Σw² beside ½·MSE
    return Ridge(alpha=alpha).fit(X, y).predict


def diverging(X, y, plugins):
    if plugins[0].strength == 1.0 and len(X):
        return lambda X: np.full(len(X), np.inf)
    return ridge(X, y, plugins)
