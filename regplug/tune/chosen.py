"""The model that a search chose, as scikit-learn's estimator."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, MetaEstimatorMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from regplug.tune.data import check_data, scored
from regplug.tune.estimator import Reading, Trained
from regplug.tune.fits import Scorer, score
from regplug.tune.shown import scores_html

__all__ = ["ChosenModel"]


def _may_be_classes(search: "ChosenModel") -> bool:
    reading: Reading | None = getattr(search, "_reading", None)
    return reading is None or reading.kind == "classification"


class ChosenModel(MetaEstimatorMixin, BaseEstimator):
    """Predicts and scores by ``best_model_``, once a search has chosen it."""

    best_model_: Any
    _reading: Reading
    _scorer: Scorer
    _trained: Trained

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        """Return what a notebook shows: scikit-learn's view, and after ``fit`` the scores."""
        bundle: dict[str, str] = super()._repr_mimebundle_(**options)
        if hasattr(self, "cv_results_"):
            bundle["text/html"] = scores_html(self)
        return bundle

    @property
    def _repr_html_(self) -> Any:
        """The same, for what doesn't ask for the bundle; scikit-learn has a property too."""
        if not hasattr(self, "cv_results_"):
            return super()._repr_html_
        return lambda: scores_html(self)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the chosen model's values, or labels for classes, one for each row of ``X``.

        Raises:
            sklearn.exceptions.NotFittedError: nothing was fitted yet.
        """
        check_is_fitted(self, "best_model_")
        return self._trained.predict(X)

    @available_if(_may_be_classes)
    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return the probabilities of the classes, shape ``(n, C)``.

        They are the softmax of scores, the sigmoid of a single logit or of one for each column
        of a target of 0 and 1, and probabilities as they are where the model ends in them.

        Raises:
            sklearn.exceptions.NotFittedError: nothing was fitted yet.
            RegplugError: the model returns labels, not scores.
        """
        check_is_fitted(self, "best_model_")
        return np.asarray(self._trained.predict_proba(X))

    @available_if(_may_be_classes)
    def decision_function(self, X: Any) -> NDArray[Any]:
        """Return the chosen model's scores, shape ``(n, C)``, or ``(n,)`` for two classes.

        Raises:
            sklearn.exceptions.NotFittedError: nothing was fitted yet.
            RegplugError: the model returns labels, not scores.
        """
        check_is_fitted(self, "best_model_")
        return np.asarray(self._trained.decision_function(X))

    def score(self, X: Any, y: Any) -> float:
        """Return the chosen model's score on new data, by ``scoring``; greater is better.

        Raises:
            sklearn.exceptions.NotFittedError: nothing was fitted yet.
        """
        check_is_fitted(self, "best_model_")
        X, y = check_data(X, y)
        return score(self._scorer, self._trained, X, scored(y, self._reading.kind))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.three_d_array = True
        kind = self._reading.kind if hasattr(self, "_reading") else None
        if kind == "classification":
            from sklearn.utils import ClassifierTags

            tags.estimator_type, tags.classifier_tags = "classifier", ClassifierTags()
        elif kind == "regression":
            from sklearn.utils import RegressorTags

            tags.estimator_type, tags.regressor_tags = "regressor", RegressorTags()
        return tags
