"""The schedule of a search: which fits there are, which are done, and the tasks of the rest."""

import math
import os
from collections.abc import Sequence
from typing import Any

from regplug.tune import stacked
from regplug.tune.fits import Fit, Outcome, Work, fit_path, takes_start
from regplug.tune.grid import Grid
from regplug.tune.jobs import Task, run, workers
from regplug.tune.journal import Journal, fingerprint
from regplug.tune.kinds import name_of
from regplug.tune.progress import Progress
from regplug.tune.recipe import Recipe

__all__ = ["Schedule"]


class Schedule:
    """The fits of a search: every candidate on every fold.

    Args:
        work: what they share.
        grid: the strengths.
        along: the key along whose strengths a loop with ``start`` goes on from fit to fit.
        scoring: the scorer's name.
        resume: a file that keeps what is done, or None.
        n_jobs: processes.

    Attributes:
        done: what came of those that are done.
        batched: whether a Recipe's fits are trained at once.

    Raises:
        StateError: the file ``resume`` belongs to another search.
        RegplugError: the first fit of a Recipe raises.
    """

    def __init__(
        self,
        work: Work,
        grid: Grid,
        *,
        along: str,
        scoring: str,
        resume: str | os.PathLike[str] | None,
        n_jobs: int | None,
    ) -> None:
        self.done: list[Outcome] = []
        self.batched = False
        self._work, self._along, self._n_jobs = work, along, n_jobs
        self._candidates = grid.candidates
        self._fits = [
            Fit(index, fold, candidate, tuple(grid.specs(candidate)))
            for index, candidate in enumerate(self._candidates)
            for fold in range(len(work.splits))
        ]
        self._journal = None
        if resume is not None:
            loop = repr(work.train) if isinstance(work.train, Recipe) else name_of(work.train)
            other = {"scoring": scoring, "seed": str(work.seed), "train": loop}
            about = fingerprint(work.X, work.wanted, work.splits, work.weight, **other)
            self._journal = Journal(resume, about)
            self.done += [o for f in self._fits if (o := self._journal.outcome(f)) is not None]
        self._known = {(one.candidate, one.fold) for one in self.done}
        self._tasks = self._planned(
            [fit for fit in self._fits if (fit.candidate, fit.fold) not in self._known]
        )

    def run(self, *, progress: bool) -> None:
        """Run what is left. Whatever ends it, ``done`` has what is done by then."""
        bar = Progress(len(self._fits), len(self.done), show=progress)
        try:
            for outcomes in run(self._tasks, self._n_jobs):
                fresh = [one for one in outcomes if (one.candidate, one.fold) not in self._known]
                self.done += fresh
                if self._journal is not None:
                    self._journal.add(self._candidates, fresh)
                scores = (o.score for o in self.done if o.score == o.score)
                bar.advance(len(fresh), max(scores, default=math.nan))
        finally:
            bar.close()

    def _planned(self, missing: Sequence[Fit]) -> list[Task]:
        """Return what is to be run: single fits, paths of warm starts, or batches of a Recipe."""
        work, along = self._work, self._along
        if isinstance(work.train, Recipe):
            tasks = stacked.tasks(work.train, work, missing, workers(self._n_jobs))
            if tasks is not None:
                self.batched = True
                return tasks
        if not takes_start(work.train):
            return [(fit_path, (work, [fit], False)) for fit in missing]
        # A path is one fold and one setting of the other strengths, from strong to weak.
        paths: dict[tuple[Any, ...], list[Fit]] = {}
        for fit in sorted(self._fits, key=lambda fit: -fit.params[along]):
            others = tuple(value for key, value in fit.params.items() if key != along)
            paths.setdefault((*others, fit.fold), []).append(fit)
        wanted = {(fit.candidate, fit.fold) for fit in missing}
        return [
            (fit_path, (work, path, True))
            for path in paths.values()
            if any((fit.candidate, fit.fold) in wanted for fit in path)
        ]
