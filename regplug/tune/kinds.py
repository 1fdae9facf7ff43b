"""What a search learns, values or classes, and how it scores them: by the loss, or by the target.

A handwritten loop hides its loss, so a target of floats is a regression and all others are classes.
A Recipe's loss is known and decides. Either way a scorer of values makes it a regression, and a
scorer of classes makes whole numbers classes.
"""

import functools
from typing import Any

import numpy as np
from sklearn.metrics import get_scorer

from regplug.backend.others import module_of_metric
from regplug.errors import SpecError
from regplug.tune.data import Kind, as_numpy, kind_of
from regplug.tune.estimator import Reading
from regplug.tune.fits import Scorer, Train
from regplug.tune.recipe import Recipe
from regplug.tune.targets import Form

__all__ = ["judged", "name_of"]


def judged(train: Train, X: Any, y: Any, scoring: Any) -> tuple[Reading, Scorer, str, Any]:
    """Return how outputs are read, the scorer and its name, and the target that the loop gets.

    The loop gets ``y`` itself, but for labels that a Recipe's loss wants as numbers.

    Raises:
        SpecError: there is no such scorer, or the Recipe's loss can't be trained on ``y``.
    """
    recipe = _recipe(train)
    form, given = (None, y) if recipe is None else recipe.form(X, y)
    kind = _kind(y, form)
    if scoring is not None:
        scorer, name = _scorer(scoring)
        about = module_of_metric(scorer)
        if about.endswith("_regression"):
            kind = "regression"  # counts and ratings are whole numbers, but not classes
        elif about.endswith("_classification") and _discrete(y):
            kind = "classification"
    else:
        scorer, name = _scorer("neg_mean_squared_error" if kind == "regression" else "accuracy")
    target = as_numpy(y)
    if kind == "classification" and target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    return Reading(kind, target, form.tells if form is not None else None), scorer, name, given


def _kind(y: Any, form: Form | None) -> Kind:
    kind = kind_of(y)
    if form is None:
        return kind
    if form.classes is None and form.dtype.is_floating_point and as_numpy(y).dtype.kind in "biu":
        return "regression"  # an unknown loss computes with them as with any values
    if form.classes is False:
        return "regression"
    return "classification" if form.classes and _discrete(y) else kind


def _discrete(y: Any) -> bool:
    array = as_numpy(y)
    return array.dtype.kind != "f" or bool((array == np.round(array)).all())


def _recipe(train: Train) -> Recipe | None:
    """Return the Recipe that a loop is, or whose call it is."""
    if isinstance(train, functools.partial):
        return _recipe(train.func)
    owner = getattr(train, "__self__", train)
    return owner if isinstance(owner, Recipe) else None


def _scorer(scoring: Any) -> tuple[Scorer, str]:
    if isinstance(scoring, str):
        try:
            return get_scorer(scoring), scoring
        except ValueError as error:
            raise SpecError(f"scoring={scoring!r} is no scorer of scikit-learn: {error}") from error
    if callable(scoring):
        return scoring, name_of(scoring)
    raise SpecError(
        "scoring must be a scorer's name, a callable (estimator, X, y) -> float, or None, "
        f"got {scoring!r}"
    )


def name_of(call: Any) -> str:
    """Return a name that is the same in every process."""
    named = call if hasattr(call, "__qualname__") else type(call)
    return f"{named.__module__}.{named.__qualname__}"
