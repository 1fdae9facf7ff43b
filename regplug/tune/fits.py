"""One fit of a search: train on a fold's training rows with some strengths, score on its test rows.

What is here runs in worker processes, so it is plain functions over plain data.
"""

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from regplug import Plugin
from regplug.discovery.catalog import load
from regplug.errors import RegplugError, SpecError
from regplug.tune.data import Split, rows, scored
from regplug.tune.estimator import Reading, wrap
from regplug.tune.predictor import Predict, coefficients, nonzero_weights
from regplug.tune.seeding import seed_for, seeded

__all__ = [
    "Fit",
    "FitError",
    "Outcome",
    "Scorer",
    "Train",
    "Work",
    "check_train",
    "failed",
    "fit_path",
    "takes_start",
    "takes_weight",
    "trained",
]

Train: TypeAlias = Callable[..., Predict]
Scorer: TypeAlias = Callable[[Any, Any, Any], float]


@dataclass(frozen=True)
class Fit:
    """A candidate's place in the list, its strengths, the specs they make, and a fold's number."""

    candidate: int
    fold: int
    params: Mapping[str, float]
    specs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{dict(self.params)} on fold {self.fold}"


@dataclass(frozen=True)
class Outcome:
    """What came of a fit. ``nonzero`` and ``weights`` are None where the predictor hides them."""

    candidate: int
    fold: int
    score: float
    seconds: float
    nonzero: int | None = None
    weights: NDArray[Any] | None = None


@dataclass(frozen=True)
class Work:
    """What all fits of a search share.

    Attributes:
        train: the loop.
        X: all rows.
        y: the target as the loop gets it.
        wanted: the target as scorers get it.
        splits: the folds.
        scorer: what scores.
        reading: how outputs are read.
        seed: of the search.
        weight: a weight for each row, for a loop that takes it.
    """

    train: Train
    X: Any
    y: Any
    wanted: Any
    splits: Sequence[Split]
    scorer: Scorer
    reading: Reading
    seed: int
    weight: Any = None

    def training(self, fold: int) -> tuple[Any, Any]:
        """Return a fold's training rows."""
        index = self.splits[fold][0]
        return rows(self.X, index), rows(self.y, index)

    def weighted(self, fold: int) -> dict[str, Any]:
        """Return the argument with the weights of a fold's training rows, if there are any."""
        if self.weight is None:
            return {}
        return {"sample_weight": rows(self.weight, self.splits[fold][0])}

    def all_weights(self) -> dict[str, Any]:
        """Return that argument for all rows."""
        return {} if self.weight is None else {"sample_weight": self.weight}

    def test(self, fold: int) -> tuple[Any, Any]:
        """Return a fold's test rows, for a scorer."""
        index = self.splits[fold][1]
        return rows(self.X, index), scored(rows(self.wanted, index), self.reading.kind)

    def score(self, fold: int, predict: Predict) -> float:
        """Return the score on a fold's test rows, NaN if the predictions or it are not finite."""
        return score(self.scorer, wrap(predict, self.reading), *self.test(fold))


def check_train(train: object, *, weighted: bool = False) -> None:
    """Refuse what can't be called as ``train(X, y, plugins)``, with ``sample_weight`` if weighted.

    Raises:
        SpecError: it can't.
    """
    if not callable(train):
        raise SpecError(f"train must be a callable train(X, y, plugins) -> predict, got {train!r}")
    if weighted and takes_weight(train):
        return
    try:
        inspect.signature(train).bind(None, None, [])
    except TypeError as error:
        raise SpecError(
            f"train must take three arguments, train(X, y, plugins) -> predict: {error}"
        ) from error
    except ValueError:  # a callable from C, whose signature is not known
        return


def takes_start(train: Train) -> bool:
    """Return whether ``train`` has a ``start`` argument, to go on from an earlier predictor."""
    try:
        return "start" in inspect.signature(train).parameters
    except ValueError:
        return False


def takes_weight(train: Train) -> bool:
    """Return whether ``train`` can be called with weights of rows, ``sample_weight``."""
    try:
        inspect.signature(train).bind(None, None, [], sample_weight=None)
    except TypeError:
        return False
    except ValueError:  # a callable from C, whose signature is not known
        return True
    return True


def plugins_of(specs: Sequence[str]) -> list[Plugin]:
    """Return new plugins, never attached before."""
    return [load(spec) for spec in specs]


def trained(work: Work, specs: Sequence[str], X: Any, y: Any, **start: Any) -> Predict:
    """Call the loop and return its predictor.

    Raises:
        SpecError: it returned none.
    """
    predict = work.train(X, y, plugins_of(specs), **start)
    if not callable(predict):
        raise SpecError(
            "train must return a predictor, a module or a callable that takes X, but returned "
            f"{predict!r}"
        )
    return predict


def score(scorer: Scorer, estimator: Any, X: Any, y: Any) -> float:
    """Return a finite score or NaN: a loop that diverged must not stop the others.

    Raises:
        RegplugError: the scorer returned no number.
    """
    found = estimator.output(X)
    if found.dtype.kind in "fc" and not np.isfinite(found).all():
        return math.nan
    value = scorer(estimator, X, y)
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise RegplugError(f"scoring must return one number, got {value!r}") from error
    return number if math.isfinite(number) else math.nan


class FitError(RegplugError):
    """A fit raised; the message names its strengths and its fold."""


def failed(what: str, error: Exception) -> RegplugError:
    """Return an error that says what failed: of the class of regplug's own, else a FitError."""
    kind = type(error) if isinstance(error, RegplugError) else FitError
    return kind(f"{what} failed: {type(error).__name__}: {error}")


def fit_path(work: Work, fits: Sequence[Fit], warm: bool) -> list[Outcome]:
    """Run fits of one fold, one after another; if ``warm``, each starts from the one before.

    Raises:
        RegplugError: one raised, with what it raised as the cause.
    """
    outcomes: list[Outcome] = []
    start: Mapping[str, Any] = {"start": None} if warm else {}
    X, y = work.training(fits[0].fold)
    weights = work.weighted(fits[0].fold)
    for fit in fits:
        began = time.perf_counter()
        try:
            with seeded(seed_for(work.seed, fit.fold)):
                predict = trained(work, fit.specs, X, y, **weights, **start)
                seconds = time.perf_counter() - began
                number = work.score(fit.fold, predict)
        except Exception as error:
            raise failed(f"the fit with {fit}", error) from error
        if warm:
            start = {"start": predict}
        outcomes.append(
            Outcome(
                fit.candidate,
                fit.fold,
                number,
                seconds,
                nonzero_weights(predict),
                coefficients(predict),
            )
        )
    return outcomes
