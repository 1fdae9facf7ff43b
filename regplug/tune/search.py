"""StrengthCV: the strengths that cross-validation chooses, for any training loop."""

import math
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, MetaEstimatorMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from regplug.errors import PluginNotFoundError, RegplugError, SpecError
from regplug.tune import auto, hints, rules
from regplug.tune.data import check_data, check_weight, scored, splits_of
from regplug.tune.estimator import Reading, wrap
from regplug.tune.fits import (
    Fit,
    Outcome,
    Scorer,
    Train,
    Work,
    check_train,
    failed,
    fit_path,
    score,
    takes_start,
    takes_weight,
    trained,
)
from regplug.tune.grid import Auto, Candidate, Grid
from regplug.tune.jobs import Task, run, workers
from regplug.tune.journal import Journal, fingerprint
from regplug.tune.kinds import judged, name_of
from regplug.tune.loading import new_plugin
from regplug.tune.progress import Progress
from regplug.tune.recipe import Recipe
from regplug.tune.seeding import seed_for, seeded

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["StrengthCV"]

_RULES = ("best", "one_se")


def _may_be_classes(search: "StrengthCV") -> bool:
    reading: Reading | None = getattr(search, "_reading", None)
    return reading is None or reading.kind == "classification"


class StrengthCV(MetaEstimatorMixin, BaseEstimator):
    r"""Choose regularization strengths by cross-validation, for any training loop.

    For every combination :math:`\lambda` of the grid and every fold :math:`k` of :math:`K`, the
    loop is trained on the other folds with plugins of these strengths and scored on fold
    :math:`k`, :math:`s_k(\lambda)`. Then

    .. math::

        \bar s(\lambda) = \tfrac1K \sum_k s_k(\lambda), \qquad
        \mathrm{SE}(\lambda) = \mathrm{std}_{\mathrm{ddof}=1}(s_k(\lambda)) / \sqrt K,

    the rule ``"best"`` takes the :math:`\lambda` with the highest mean, and ``"one_se"`` the
    *strongest* one whose mean is at least the best's minus the best's standard error: the
    simplest model that can't be told from the best. With several strengths, strongest means the
    largest first one, then the largest second, in the order of the grid's keys. The loop is trained
    once more on all data with the rule's choice.

    It is a scikit-learn estimator: it can be cloned, put at the end of a pipeline, and itself
    cross-validated (nested cross-validation, the honest score of the whole procedure).

    Args:
        train: ``train(X, y, plugins) -> predict``, your loop. It attaches ``plugins`` (a list of
            new ones in the order of the grid's keys) and returns a module, or a callable that takes
            rows like those of ``X`` and returns one output for each: values for regression; labels
            or scores of shape ``(n, C)`` before the softmax for classes, columns in the order of
            ``np.unique(y)``; of two classes, or of each column of 0 and 1, one logit will do (a
            probability, if the model ends in a sigmoid). ``X`` and ``y`` are rows of what ``fit``
            got, arrays, tensors or data frames. If it takes an argument ``start``, it is called
            with the predictor of the
            next stronger strength (None for the strongest), to go on from there. A :class:`Recipe`
            is a loop too, of which all fits are trained at once.
        grid: specs with a placeholder for the strength, and the strengths:
            ``{"l1": [1e-3, 1e-4], "l2(_, where='all')": [0.1, 0.01]}``; all combinations are tried.
            ``"auto"`` (or :class:`Auto` with settings) finds the path for a proximal penalty.
        cv: the number of folds, any splitter of scikit-learn, or an iterable of splits. A number
            means ``StratifiedKFold`` for classes and ``KFold`` otherwise, not shuffled.
        scoring: a scorer's name or a callable ``(estimator, X, y) -> float``, greater is better.
            None means negative mean squared error for a target of floats, else accuracy; the loss
            of a Recipe decides, where it is one of values or one of classes.
        rule: ``"best"`` or ``"one_se"``.
        n_jobs: processes, through joblib and whichever backend is active there (loky, Dask, Ray);
            None means one, -1 all processors. Scores don't depend on it.
        progress: whether to show a progress bar.
        resume: a file that keeps every fit that is done. If it is there, the search goes on from
            it; it must belong to the same data, folds and scoring, the grid may have grown. Delete
            it if you change the loop.
        seed: seeds Python, NumPy and torch anew for each fit, the same for all strengths of a fold.

    Attributes:
        cv_results_: a dict of lists and arrays, one entry for each combination: ``params``,
            ``param_<key>``, ``split0_test_score`` …, ``mean_test_score``, ``std_test_score``
            (``ddof=0``, as in scikit-learn), ``se_test_score``, ``rank_test_score``,
            ``mean_fit_time``, ``mean_nonzero`` (weights that are not exactly 0, a mean over folds).
        best_params_: the combination with the highest mean score.
        best_score_: its mean score.
        best_index_: its index in ``cv_results_``.
        one_se_params_: the choice of the one-standard-error rule; None for a single fold.
        chosen_params_: the one of the two that ``rule`` says.
        edges_: a dict of the keys whose best strength is at an end of its list that could be
            longer, ``"weakest"`` or ``"strongest"``; ``progress`` tells it (of lists of three
            strengths or more).
        best_model_: what ``train`` returned for all data with ``chosen_params_``.
        n_splits_: the number of folds.
        classes_: the labels, for classes.
        batched_: whether a Recipe's fits were trained at once.

    Raises:
        SpecError: from ``fit``, before the first fit: a wrong argument, grid, or data.
        RegplugError: from ``fit``: a fit raised; the message names its strengths and its fold.

    References:
        Leo Breiman, Jerome Friedman, Richard Olshen, Charles Stone, "Classification and Regression
        Trees", 1984, section 3.4.3 (the one-standard-error rule).
        Trevor Hastie, Robert Tibshirani, Jerome Friedman, "The Elements of Statistical Learning",
        2nd edition, 2009, section 7.10, https://hastie.su.domains/ElemStatLearn/.

    >>> import torch, regplug
    >>> from regplug.tune import StrengthCV
    >>> def train(X, y, plugins):
    ...     model = torch.nn.Linear(3, 1)
    ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ...     with regplug.attach(model, optimizer, plugins):
    ...         for _ in range(60):
    ...             optimizer.zero_grad()
    ...             torch.nn.functional.mse_loss(model(X)[:, 0], y).backward()
    ...             optimizer.step()
    ...     return model
    >>> X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    >>> y = X[:, 0] * 2
    >>> search = StrengthCV(train, {"l2": [10.0, 0.1, 0.001]}, progress=False).fit(X, y)
    >>> search.best_params_
    {'l2': 0.001}
    """

    def __init__(
        self,
        train: Train,
        grid: Mapping[str, Iterable[float] | str | Auto],
        *,
        cv: Any = 5,
        scoring: str | Scorer | None = None,
        rule: Literal["best", "one_se"] = "best",
        n_jobs: int | None = None,
        progress: bool = True,
        resume: str | os.PathLike[str] | None = None,
        seed: int = 0,
    ) -> None:
        self.train = train
        self.grid = grid
        self.cv = cv
        self.scoring = scoring
        self.rule = rule
        self.n_jobs = n_jobs
        self.progress = progress
        self.resume = resume
        self.seed = seed

    # --- the search -----------------------------------------------------------------------

    def fit(self, X: Any, y: Any, groups: Any = None, sample_weight: Any = None) -> "StrengthCV":
        """Search, choose by the rule, and train once more on all data.

        Stopped by Ctrl-C, it keeps the scores that are there in ``cv_results_`` (and in the file
        ``resume``), and raises ``KeyboardInterrupt`` as usual.

        Args:
            X: shape ``(n, …)``, an array, a tensor or a data frame.
            y: shape ``(n,)`` or ``(n, outputs)``.
            groups: shape ``(n,)``, for splitters that keep groups together.
            sample_weight: shape ``(n,)``, one weight for each row. The loop gets those of its rows
                as ``train(X, y, plugins, sample_weight=…)``; scores are not weighted, as in
                scikit-learn's searches.

        Returns:
            The search itself.

        Raises:
            SpecError: an argument, the grid or the data are wrong; nothing was trained.
            StateError: the file ``resume`` belongs to another search.
            RegplugError: a fit raised, or none has a score.
        """
        grid = self._checked_grid(weighted=sample_weight is not None)
        X, y = check_data(X, y, groups)
        weight = self._checked_weight(sample_weight, X)
        reading, scorer, scoring, target = judged(self.train, X, y, self.scoring)
        splits = splits_of(self.cv, X, y, groups, reading.kind)
        if self.rule == "one_se" and len(splits) < 2:
            raise SpecError("rule='one_se' needs at least two folds for a standard error")
        work = Work(self.train, X, target, y, splits, scorer, reading, self.seed, weight)
        if grid.automatic:
            grid = auto.found(grid, work, **_all_weights(work))
            _check_strengths(grid)

        self._reading = reading
        self._scorer = scorer
        self._scoring_name = scoring
        self._keys = grid.keys
        self.n_splits_ = len(splits)
        if reading.kind == "classification":
            self.classes_ = reading.classes
        if len(X.shape) > 1:
            self.n_features_in_ = int(X.shape[1])
        candidates = grid.candidates
        self._search(work, grid, candidates, scoring)
        self._choose(candidates)
        self._tell_edges(grid)
        self._refit(work, grid)
        if doubt := hints.no_logits(self._trained, X, y):
            warnings.warn(doubt, stacklevel=2)
        return self

    def _checked_grid(self, weighted: bool) -> Grid:
        """Return the grid; everything that can be known without data is checked."""
        if self.rule not in _RULES:
            raise SpecError(f"rule must be one of {', '.join(_RULES)}, got {self.rule!r}")
        if (
            isinstance(self.seed, bool)
            or not isinstance(self.seed, int | np.integer)
            or self.seed < 0
        ):
            raise SpecError(f"seed must be a whole number of at least 0, got {self.seed!r}")
        check_train(self.train, weighted=weighted)
        grid = Grid(self.grid)
        _check_strengths(grid)
        return auto.check_automatic(grid)

    def _checked_weight(self, weight: Any, X: Any) -> Any:
        if weight is None:
            return None
        if not takes_weight(self.train):
            raise SpecError(
                "sample_weight is for a loop that takes it, train(X, y, plugins, sample_weight)"
                + (
                    "; a Recipe's loss is one number for a batch: write the loop by hand"
                    if isinstance(self.train, Recipe)
                    else ""
                )
            )
        return check_weight(weight, X)

    def _search(
        self, work: Work, grid: Grid, candidates: Sequence[Candidate], scoring: str
    ) -> None:
        fits = [
            Fit(index, fold, candidate, tuple(grid.specs(candidate)))
            for index, candidate in enumerate(candidates)
            for fold in range(len(work.splits))
        ]
        journal = None
        done: list[Outcome] = []
        if self.resume is not None:
            loop = repr(self.train) if isinstance(self.train, Recipe) else name_of(self.train)
            other = {"scoring": scoring, "seed": str(self.seed), "train": loop}
            about = fingerprint(work.X, work.wanted, work.splits, work.weight, **other)
            journal = Journal(self.resume, about)
            done = [found for fit in fits if (found := journal.outcome(fit)) is not None]
        known = {(one.candidate, one.fold) for one in done}
        tasks = self._tasks(
            work, grid, [f for f in fits if (f.candidate, f.fold) not in known], fits
        )
        bar = Progress(len(fits), len(done), show=bool(self.progress))
        try:
            for outcomes in run(tasks, self.n_jobs):
                fresh = [one for one in outcomes if (one.candidate, one.fold) not in known]
                done += fresh
                if journal is not None:
                    journal.add(candidates, fresh)
                bar.advance(
                    len(fresh), max((o.score for o in done if o.score == o.score), default=math.nan)
                )
        finally:
            bar.close()
            self._outcomes = sorted(done, key=lambda one: (one.candidate, one.fold))
            self.cv_results_ = _results(candidates, grid, len(work.splits), done)

    def _tasks(
        self, work: Work, grid: Grid, missing: Sequence[Fit], fits: Sequence[Fit]
    ) -> list[Task]:
        """Return what is to be run: single fits, paths of warm starts, or batches of a Recipe."""
        self.batched_ = False
        if isinstance(self.train, Recipe):
            tasks = self.train.tasks(work, missing, workers(self.n_jobs))
            if tasks is not None:
                self.batched_ = True
                return tasks
        if not takes_start(self.train):
            return [(fit_path, (work, [fit], False)) for fit in missing]
        # A path is one fold and one setting of the other strengths, from strong to weak.
        along = next((axis.key for axis in Grid(self.grid).automatic), grid.keys[0])
        paths: dict[tuple[Any, ...], list[Fit]] = {}
        for fit in sorted(fits, key=lambda fit: -fit.params[along]):
            others = tuple(value for key, value in fit.params.items() if key != along)
            paths.setdefault((*others, fit.fold), []).append(fit)
        wanted = {(fit.candidate, fit.fold) for fit in missing}
        return [
            (fit_path, (work, path, True))
            for path in paths.values()
            if any((fit.candidate, fit.fold) in wanted for fit in path)
        ]

    def _choose(self, candidates: Sequence[Candidate]) -> None:
        means = self.cv_results_["mean_test_score"]
        if np.isnan(means).all():
            raise RegplugError(
                "every combination scored NaN on some fold: the loop diverges, or the scorer "
                f"fails; the first was {candidates[0]}"
            )
        missing = [
            f"{dict(candidates[one.candidate])} on fold {one.fold}"
            for one in self._outcomes
            if math.isnan(one.score)
        ]
        if missing:
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            warnings.warn(
                f"NaN scores, which rank last: {'; '.join(missing[:10])}{more}", stacklevel=3
            )
        errors = self.cv_results_["se_test_score"]
        self.best_index_ = rules.best(means)
        self.best_params_ = dict(candidates[self.best_index_])
        self.best_score_ = float(means[self.best_index_])
        self.one_se_params_ = None
        if not np.isnan(errors[self.best_index_]):
            self.one_se_params_ = dict(
                candidates[rules.one_standard_error(candidates, means, errors)]
            )
        chosen = self.best_params_ if self.rule == "best" else self.one_se_params_
        assert chosen is not None
        self.chosen_params_ = dict(chosen)

    def _tell_edges(self, grid: Grid) -> None:
        self.edges_ = hints.edges(grid.axes, Grid(self.grid).axes, self.best_params_)
        for key, end in self.edges_.items():
            if self.progress and (told := hints.at_edge(grid.axes, self.best_params_, key, end)):
                sys.stderr.write(f"{told}\n")

    def _refit(self, work: Work, grid: Grid) -> None:
        specs = grid.specs(self.chosen_params_)
        start = {"start": None} if takes_start(self.train) else {}
        try:
            with seeded(seed_for(self.seed, self.n_splits_)):
                self.best_model_ = trained(
                    work, specs, work.X, work.y, **_all_weights(work), **start
                )
        except Exception as error:
            raise failed(f"the fit with {self.chosen_params_} on all data", error) from error
        self._trained = wrap(self.best_model_, work.reading)

    # --- the estimator --------------------------------------------------------------------

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

    # --- the pictures ---------------------------------------------------------------------

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the score against the strength; of two strengths, a heat map.

        See :func:`regplug.tune.plots.plot_scores`.
        """
        from regplug.tune.plots import plot_scores

        check_is_fitted(self, "best_params_")
        return plot_scores(self, ax)

    def plot_path(self, ax: "Axes | None" = None, names: Sequence[str] | None = None) -> "Axes":
        """Draw the coefficients of a linear model against the strength.

        See :func:`regplug.tune.plots.plot_coefficients`.
        """
        from regplug.tune.plots import plot_coefficients

        check_is_fitted(self, "best_params_")
        return plot_coefficients(self, ax, names)


def _check_strengths(grid: Grid) -> None:
    """Let every plugin judge every strength, alone and together.

    Raises:
        SpecError: one is refused, or two plugins have one name; the message names key and strength.
        PluginNotFoundError: there is no such plugin.
    """
    plugins = []
    for axis in grid.axes:
        values = (1.0,) if isinstance(axis.values, Auto) else axis.values
        for value in values:
            try:
                plugin = new_plugin(axis.spec(value))
            except PluginNotFoundError:
                raise
            except RegplugError as error:
                raise SpecError(f"grid[{axis.key!r}] refuses {value!r}: {error}") from error
        plugins.append((axis.key, plugin.name))
    for _, name in plugins:
        same = [other for other, its in plugins if its == name]
        if len(same) > 1:
            raise SpecError(
                f"grid: {' and '.join(map(repr, same))} both make a plugin named {name!r}; "
                "give one of them name=…"
            )


def _all_weights(work: Work) -> dict[str, Any]:
    return {} if work.weight is None else {"sample_weight": work.weight}


def _results(
    candidates: Sequence[Candidate], grid: Grid, folds: int, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    shape = (len(candidates), folds)
    scores, seconds, nonzero = (np.full(shape, np.nan) for _ in range(3))
    for one in outcomes:
        place = one.candidate, one.fold
        scores[place], seconds[place] = one.score, one.seconds
        nonzero[place] = np.nan if one.nonzero is None else one.nonzero
    summary = rules.summary(scores)
    return {
        "params": [dict(candidate) for candidate in candidates],
        **{f"param_{key}": np.array([c[key] for c in candidates]) for key in grid.keys},
        **{f"split{fold}_test_score": scores[:, fold] for fold in range(folds)},
        **summary,
        "rank_test_score": rules.ranks(summary["mean_test_score"]),
        "mean_fit_time": seconds.mean(axis=1),
        "mean_nonzero": nonzero.mean(axis=1),
    }
