"""What a loop returned, seen as a scikit-learn estimator, so that any scorer can score it."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from regplug.backend.private import compiled_inside
from regplug.errors import RegplugError
from regplug.tune.data import Kind, length, rows
from regplug.tune.losses import Tells, last_operation
from regplug.tune.predictor import Predict, module_of, output

__all__ = ["Reading", "Trained", "wrap"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Reading:
    """How outputs are read, the same for all fits of a search.

    Attributes:
        kind: whether values or classes are learned.
        target: the whole target (folds may lack a class), in one dimension if it is one column of
            classes.
        tells: what an output is, by the loss of a Recipe; None if that is not known.
    """

    kind: Kind
    target: Array
    tells: Tells | None = None

    @property
    def classes(self) -> Array:
        """The labels; of several columns of 0 and 1 the columns' numbers, as scikit-learn says."""
        if self.indicator:
            return np.arange(self.target.shape[1])
        return np.unique(self.target)

    @property
    def indicator(self) -> bool:
        """Whether every column is a class of its own, of 0 and 1."""
        y = self.target
        return y.ndim == 2 and y.dtype.kind in "biuf" and bool(((y == 0) | (y == 1)).all())


def wrap(predict: Predict, reading: Reading) -> "Trained":
    """Return ``predict`` as an estimator."""
    return (_Classifier if reading.kind == "classification" else _Regressor)(predict, reading)


class Trained(BaseEstimator):
    """A predictor with the methods that scorers call. Use :func:`wrap` to make one."""

    def __init__(self, predict: Predict, reading: Reading) -> None:
        self.raw = predict
        self.reading = reading

    def fit(self, X: Any, y: Any) -> "Trained":
        """Do nothing: the loop has trained it. Scorers ask whether there is such a method."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def output(self, X: Any) -> Array:
        """Return the predictor's own output, with a column of one where the target has one."""
        found: Array = output(self.raw, X)
        columns = self.reading.target.shape[1:]
        if columns == () and found.ndim == 2 and found.shape[1] == 1:
            return found[:, 0]
        if columns == (1,) and found.ndim == 1:
            return found[:, None]
        return found

    def predict(self, X: Any) -> Array:
        """Return values, or for classes the labels."""
        raise NotImplementedError


class _Regressor(RegressorMixin, Trained):
    def predict(self, X: Any) -> Array:
        found: Array = self.output(X)
        tells = self.reading.tells
        if tells == "log":
            found = np.exp(found)
        elif tells == "logit":
            found = _sigmoid(found).astype(found.dtype)
        elif tells == "scores" and found.ndim > 1:
            found = _softmax(found).astype(found.dtype)
        return found


class _Classifier(ClassifierMixin, Trained):
    @functools.cached_property
    def classes_(self) -> Array:
        return self.reading.classes

    @functools.cached_property
    def _last(self) -> str:
        """Which operation a predictor ends in; "" where it shows none."""
        X = self._rows
        predict = compiled_inside(module_of(self.raw)) or self.raw  # not compiled
        try:
            few = rows(X, np.arange(min(2, length(X))))
            return last_operation(lambda: output(predict, few, plain=False))
        except Exception:  # it takes no few rows
            return ""

    def reads_log_odds(self, X: Any) -> Array | None:
        """Return the outputs if each is read as the log-odds of a class without a loss known."""
        found = self.output(X)
        if not self._single(found) or self._labels(found) is not None:
            return None
        if self.reading.target.dtype.kind in "biuf" and (self.reading.target < 0).any():
            return None  # of -1 and 1 the sign is right, whatever the loss
        return found if self._tells(X) == "logit" else None

    def _tells(self, X: Any) -> Tells:
        """Return what a column is: what the loss says, or else what the last operation shows."""
        if self.reading.tells is not None:
            return self.reading.tells
        self._rows = X
        return "probability" if self._last in ("sigmoid", "expit") else "logit"

    # --- one column of scores for two classes, or one for each of many ----------------------

    def _single(self, found: Array) -> bool:
        """Return whether outputs are scores of single classes, each for itself."""
        if found.dtype.kind != "f":
            return False
        if self.reading.target.ndim == 1:
            return found.ndim == 1 and len(self.classes_) <= 2
        return self.reading.indicator and found.shape[1:] == self.reading.target.shape[1:]

    def _labels(self, found: Array) -> Array | None:
        """Return labels that went through a floating tensor: they are labels still."""
        target = self.reading.target
        if self.reading.tells is not None or module_of(self.raw) is not None:
            return None
        if target.dtype.kind in "OUS" or not np.isin(found, np.unique(target)).all():
            return None
        return found.astype(target.dtype)

    def _log_odds(self, found: Array, X: Any) -> Array:
        tells = self._tells(X)
        if tells == "probability":
            # A single 1.0 of float32 is no certainty.
            least = np.finfo(found.dtype).eps / 2
            chance = np.clip(found.astype(np.float64), least, 1 - least)
            logits: Array = np.log(chance) - np.log1p(-chance)
            return logits
        if tells == "value":
            low, high = (0, 1) if self.reading.indicator else (self.classes_[0], self.classes_[-1])
            middle: Array = found - (float(low) + float(high)) / 2
            return middle
        if tells == "logit":
            return found
        raise RegplugError(
            f"the Recipe's loss is for {tells}s, which are no scores of a class: take a loss such "
            "as BCEWithLogitsLoss, or a scoring of your own"
        )

    def _hot(self, found: Array) -> Array:
        """Return 1 in the column with the highest score of each row, else 0."""
        hot: Array = np.eye(found.shape[1])[found.argmax(axis=1)]
        return hot.astype(self.reading.target.dtype)

    # --- one column for each class ----------------------------------------------------------

    def _scores(self, found: Array) -> Array:
        if found.ndim != 2 or not np.issubdtype(found.dtype, np.floating):
            raise RegplugError(
                "probabilities are asked for, which need (n, C) scores, or one column of them for "
                f"two classes; the predictor returned {found.dtype} of shape {found.shape}"
            )
        return found

    def _columns(self, count: int) -> Array:
        """Return the label of each column: 0 … C−1 where the labels are that, else in order."""
        labels = self.classes_
        if labels.dtype.kind in "iub" and labels.min() >= 0 and labels.max() < count:
            return np.arange(count).astype(labels.dtype)
        if labels.dtype.kind == "f" and set(labels) <= set(range(count)):
            return np.arange(count).astype(labels.dtype)
        if len(labels) == count:
            return labels
        raise RegplugError(
            f"the predictor returned {count} scores for each row, and y has {len(labels)} classes"
        )

    # --- what scorers call ------------------------------------------------------------------

    def predict(self, X: Any) -> Array:
        found = self.output(X)
        target = self.reading.target
        if target.ndim == 1 and found.ndim == 2:
            labels: Array = self._columns(found.shape[1])[found.argmax(axis=1)]
            return labels
        if found.dtype.kind != "f" or (known := self._labels(found)) is not None:
            return found if found.dtype.kind != "f" else known  # type: ignore[return-value]
        if not self._single(found):
            return found
        if target.ndim == 2 and self.reading.tells == "scores":
            return self._hot(found)
        above = self._log_odds(found, X) > 0
        if target.ndim == 2:
            return above.astype(target.dtype)
        picked: Array = self.classes_[above.astype(int) if len(self.classes_) == 2 else above * 0]
        return picked

    def decision_function(self, X: Any) -> Array:
        """Return the scores; of two classes, how much the second's is above the first's."""
        found = self.output(X)
        if self._single(found) and self._labels(found) is None:
            if self.reading.target.ndim == 2 and self.reading.tells == "scores":
                return found
            return self._log_odds(found, X)
        found = self._scores(found)
        if self.reading.target.ndim == 2:
            return found
        return found[:, 1] - found[:, 0] if found.shape[1] == 2 else found

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of the classes in ``y``, shape ``(n, C)``."""
        found = self.output(X)
        if self._single(found) and self._labels(found) is None:
            if self.reading.target.ndim == 2 and self.reading.tells == "scores":
                return _softmax(found)
            tells = self._tells(X)
            if tells not in ("logit", "probability"):
                raise RegplugError(
                    f"probabilities are asked for, and the loss makes an output a {tells}: take a "
                    "loss such as BCEWithLogitsLoss"
                )
            chance = found.astype(np.float64) if tells == "probability" else _sigmoid(found)
            return chance if found.ndim == 2 else np.stack([1 - chance, chance], axis=1)
        found = self._scores(found)
        columns = self._columns(found.shape[1])
        known = found[:, np.isin(columns, self.classes_)].astype(np.float64)
        self._rows = X
        if self.reading.tells is None and self._last == "softmax":
            shares: Array = known / known.sum(axis=1, keepdims=True)
            return shares
        return _softmax(known)


def _sigmoid(found: Array) -> Array:
    return np.asarray(torch.sigmoid(torch.from_numpy(found.astype(np.float64))))


def _softmax(found: Array) -> Array:
    return np.asarray(torch.softmax(torch.from_numpy(found.astype(np.float64)), dim=1))
