"""StrengthCV: the strengths that cross-validation chooses, for any training loop."""

import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from sklearn.utils.validation import check_is_fitted

from regplug.errors import SpecError
from regplug.tune import auto, hints
from regplug.tune.checks import check_strengths, checked_grid, checked_weight
from regplug.tune.chosen import ChosenModel
from regplug.tune.data import check_data, splits_of
from regplug.tune.estimator import wrap
from regplug.tune.fits import Scorer, Train, Work, failed, takes_start, trained
from regplug.tune.grid import Auto, Candidate, Grid
from regplug.tune.kinds import judged
from regplug.tune.results import Results, chosen, tabulated, unscored
from regplug.tune.schedule import Schedule
from regplug.tune.seeding import seed_for, seeded

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["StrengthCV"]


class StrengthCV(ChosenModel):
    """Choose regularization strengths by cross-validation, for any training loop.

    For every combination λ of the grid and every fold k of K, the loop is trained on the other
    folds with plugins of these strengths and scored on fold k: s_k(λ). With the mean
    s̄(λ) = Σ_k s_k(λ)/K and its standard error SE(λ) = std(s_k(λ))/√K (of a sample: ddof=1), the
    rule ``"best"`` takes the λ with the highest mean, and ``"one_se"`` the
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
        weighted = sample_weight is not None
        grid = checked_grid(
            self.train, self.grid, rule=self.rule, seed=self.seed, weighted=weighted
        )
        X, y = check_data(X, y, groups)
        weight = checked_weight(self.train, sample_weight, X)
        reading, scorer, scoring, target = judged(self.train, X, y, self.scoring)
        splits = splits_of(self.cv, X, y, groups, reading.kind)
        if self.rule == "one_se" and len(splits) < 2:
            raise SpecError("rule='one_se' needs at least two folds for a standard error")
        work = Work(self.train, X, target, y, splits, scorer, reading, self.seed, weight)
        if grid.automatic:
            grid = auto.found(grid, work, **work.all_weights())
            check_strengths(grid)

        self._reading = reading
        self._scorer = scorer
        self._scoring_name = scoring
        self._keys = grid.keys
        self.n_splits_ = len(splits)
        if reading.kind == "classification":
            self.classes_ = reading.classes
        if len(X.shape) > 1:
            self.n_features_in_ = int(X.shape[1])
        self._search(work, grid, scoring)
        self._choose(grid.candidates)
        self._tell_edges(grid)
        self._refit(work, grid)
        if doubt := hints.no_logits(self._trained, X, y):
            warnings.warn(doubt, stacklevel=2)
        return self

    def _search(self, work: Work, grid: Grid, scoring: str) -> None:
        schedule = Schedule(
            work,
            grid,
            along=next((axis.key for axis in Grid(self.grid).automatic), grid.keys[0]),
            scoring=scoring,
            resume=self.resume,
            n_jobs=self.n_jobs,
        )
        self.batched_ = schedule.batched
        try:
            schedule.run(progress=bool(self.progress))
        finally:
            done = sorted(schedule.done, key=lambda one: (one.candidate, one.fold))
            self._outcomes = done
            self.cv_results_ = tabulated(grid.candidates, grid.keys, len(work.splits), done)

    def _choose(self, candidates: Sequence[Candidate]) -> None:
        choice = chosen(candidates, self.cv_results_)
        if missing := unscored(candidates, self._outcomes):
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            warnings.warn(
                f"NaN scores, which rank last: {'; '.join(missing[:10])}{more}", stacklevel=3
            )
        self.best_index_ = choice.best
        self.best_params_ = dict(candidates[choice.best])
        self.best_score_ = float(self.cv_results_["mean_test_score"][choice.best])
        self.one_se_params_ = None if choice.one_se is None else dict(candidates[choice.one_se])
        picked = self.best_params_ if self.rule == "best" else self.one_se_params_
        assert picked is not None
        self.chosen_params_ = dict(picked)

    def _tell_edges(self, grid: Grid) -> None:
        self.edges_ = hints.edges(grid.axes, Grid(self.grid).axes, self.best_params_)
        for key, end in self.edges_.items():
            if self.progress and (hint := hints.at_edge(grid.axes, self.best_params_, key, end)):
                sys.stderr.write(f"{hint}\n")

    def _refit(self, work: Work, grid: Grid) -> None:
        specs = grid.specs(self.chosen_params_)
        start = {"start": None} if takes_start(self.train) else {}
        try:
            with seeded(seed_for(self.seed, self.n_splits_)):
                self.best_model_ = trained(
                    work, specs, work.X, work.y, **work.all_weights(), **start
                )
        except Exception as error:
            raise failed(f"the fit with {self.chosen_params_} on all data", error) from error
        self._trained = wrap(self.best_model_, work.reading)

    # --- the pictures ---------------------------------------------------------------------

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the score against the strength; of two strengths, a heat map.

        See ``regplug.tune.plots.plot_scores``.
        """
        from regplug.tune.plots import plot_scores

        check_is_fitted(self, "best_params_")
        return plot_scores(self._results(), ax)

    def plot_path(self, ax: "Axes | None" = None, names: Sequence[str] | None = None) -> "Axes":
        """Draw the coefficients of a linear model against the strength.

        See ``regplug.tune.plots.plot_coefficients``.
        """
        from regplug.tune.plots import plot_coefficients

        check_is_fitted(self, "best_params_")
        return plot_coefficients(self._results(), ax, names)

    def _results(self) -> Results:
        return Results(
            self._keys,
            self._scoring_name,
            self.n_splits_,
            self.cv_results_,
            self._outcomes,
            self.best_params_,
            self.one_se_params_,
        )
