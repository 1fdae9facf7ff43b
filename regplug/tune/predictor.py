"""What a loop returned, seen as a scikit-learn estimator, so that any scorer can score it."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from torch import nn

from regplug.errors import RegplugError, SpecError
from regplug.parameters import Selection
from regplug.tune.data import Kind, as_numpy, length

__all__ = [
    "Predict",
    "Trained",
    "as_input",
    "coefficients",
    "module_of",
    "nonzero_weights",
    "output",
    "wrap",
]

Predict: TypeAlias = Callable[[Any], Any]
Array: TypeAlias = NDArray[Any]


def output(predict: Predict, X: Any) -> Array:
    """Return what ``predict`` says of ``X``, without gradients, as an array of one row for each.

    A module is put into evaluation mode and gets a tensor, of its own floating type and on its own
    device; any other callable gets ``X`` as the loop got it.

    Raises:
        SpecError: what came back has no row for each row of ``X``.
    """
    with torch.no_grad():
        if isinstance(predict, nn.Module):
            predict.eval()
            X = as_input(predict, X)
        found = predict(X)
    array = as_numpy(found)
    if array.ndim == 0 or len(array) != length(X):
        raise SpecError(
            f"the predictor returned {_told(found)} for {length(X)} rows: "
            "it must return one for each"
        )
    return array


def as_input(module: nn.Module, X: Any) -> torch.Tensor:
    """Return ``X`` as a tensor on the module's device, floating numbers in the module's type."""
    # torch warns of arrays that can't be written, and joblib's shared ones can't.
    tensor = X if isinstance(X, torch.Tensor) else torch.tensor(np.asarray(X))
    first = next(module.parameters(), None)
    if first is None:
        return tensor
    floating = tensor.is_floating_point() and first.is_floating_point()
    return tensor.to(first.device, first.dtype if floating else tensor.dtype)


def _told(found: object) -> str:
    shape = getattr(found, "shape", None)
    return type(found).__name__ if shape is None else f"an output of shape {tuple(shape)}"


class Trained(BaseEstimator):
    """A predictor with the methods that scorers call. Use :func:`wrap` to make one."""

    def __init__(self, predict: Predict, target: Array) -> None:
        self.raw = predict
        self.target = target

    def fit(self, X: Any, y: Any) -> "Trained":
        """Do nothing: the loop has trained it. Scorers ask whether there is such a method."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def output(self, X: Any) -> Array:
        """Return the predictor's own output, a column dropped where the target has none."""
        found = output(self.raw, X)
        if self.target.ndim == 1 and found.ndim == 2 and found.shape[1] == 1:
            return found[:, 0]
        return found

    def predict(self, X: Any) -> Array:
        """Return values, or for classes the labels: of ``(n, C)`` scores those with the highest."""
        return self.output(X)


class _Regressor(RegressorMixin, Trained):
    pass


class _Classifier(ClassifierMixin, Trained):
    @functools.cached_property
    def classes_(self) -> Array:
        return np.unique(self.target)

    def _scores(self, X: Any) -> Array:
        found = self.output(X)
        if found.ndim != 2 or not np.issubdtype(found.dtype, np.floating):
            raise RegplugError(
                "probabilities are asked for, which need (n, C) scores; the predictor returned "
                f"{found.dtype} of shape {found.shape}"
            )
        return found

    def _columns(self, count: int) -> Array:
        """Return the label of each column: 0 … C−1 where the labels are that, else in order."""
        labels = self.classes_
        if labels.dtype.kind in "iub" and labels.min() >= 0 and labels.max() < count:
            return np.arange(count).astype(labels.dtype)
        if len(labels) == count:
            return labels
        raise RegplugError(
            f"the predictor returned {count} scores for each row, and y has {len(labels)} classes"
        )

    def predict(self, X: Any) -> Array:
        found = self.output(X)
        if found.ndim == 2 and self.target.ndim == 1:
            labels: Array = self._columns(found.shape[1])[found.argmax(axis=1)]
            return labels
        if self.target.dtype.kind in "OUS" or found.dtype.kind != "f":
            return found
        # Labels that went through a floating tensor are labels still.
        whole = found.astype(self.target.dtype)
        return whole if np.array_equal(whole, found) else found

    def decision_function(self, X: Any) -> Array:
        """Return the scores; of two classes, how much the second's is above the first's."""
        found = self._scores(X)
        return found[:, 1] - found[:, 0] if found.shape[1] == 2 else found

    def predict_proba(self, X: Any) -> Array:
        """Return the softmax of the scores, shape ``(n, C)``, for the classes in ``y``."""
        found = self._scores(X)
        columns = self._columns(found.shape[1])
        known = torch.tensor(found[:, np.isin(columns, self.classes_)], dtype=torch.float64)
        return np.asarray(torch.softmax(known, dim=1))


def wrap(predict: Predict, kind: Kind, y: Any) -> Trained:
    """Return ``predict`` as an estimator. ``y`` is the whole target: folds may lack a class."""
    return (_Classifier if kind == "classification" else _Regressor)(predict, as_numpy(y))


def module_of(predict: object) -> nn.Module | None:
    """Return the module that a predictor is, or is about: ``model.forward``, a closure over one."""
    return next(_modules(predict), None)


def _modules(predict: object) -> Iterator[nn.Module]:
    if isinstance(predict, nn.Module):
        yield predict
    elif isinstance(predict, functools.partial):
        for part in (predict.func, *predict.args, *predict.keywords.values()):
            yield from _modules(part)
    elif isinstance(owner := getattr(predict, "__self__", None), nn.Module):
        yield owner
    else:
        for cell in getattr(predict, "__closure__", None) or ():
            try:
                if isinstance(cell.cell_contents, nn.Module):
                    yield cell.cell_contents
            except ValueError:  # a cell that was never filled
                continue


def nonzero_weights(predict: object) -> int | None:
    """Return how many weights are not exactly 0, biases and normalization left out."""
    model = module_of(predict)
    if model is None:
        return None
    try:
        chosen = Selection("weights").of(model)
    except RegplugError:
        return None
    return int(sum(int(torch.count_nonzero(named.parameter.detach())) for named in chosen))


def coefficients(predict: object, most: int = 10_000) -> Array | None:
    """Return the coefficients of a linear model, shape ``(features,)`` or ``(outputs, features)``.

    A linear model is a module with one weight of two dimensions and no other than its bias.
    """
    model = module_of(predict)
    if model is None:
        return None
    tensors = [p.detach() for p in model.parameters()]
    weights = [p for p in tensors if p.ndim == 2]
    if len(weights) != 1 or weights[0].numel() > most or any(p.ndim > 2 for p in tensors):
        return None
    if len(tensors) > 2 or any(p.ndim < 2 and p.numel() > len(weights[0]) for p in tensors):
        return None
    weight = as_numpy(weights[0].double())
    return weight[0] if len(weight) == 1 else weight
