"""The exam itself: :func:`check_plugin`."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from regplug.backend.words import nearest
from regplug.errors import PluginError, SpecError, UnsupportedError
from regplug.testing.bench import Bench
from regplug.testing.candidate import EVERYWHERE, Answer, Paper
from regplug.testing.checks import (  # noqa: F401 - each registers its checks
    acting,
    arguments,
    compiling,
    copies,
    costs,
    coverage,
    delivering,
    devices,
    distributed,
    extremes,
    failing,
    following,
    formula,
    growing,
    instances,
    interludes,
    loops,
    loss_event,
    operators,
    processwide,
    projecting,
    pure,
    randomness,
    restoring,
    saving,
    selecting,
    settings,
    shapes,
    steps,
    stopped,
    strengths,
    strides,
    telling,
    training,
)
from regplug.testing.desk import Desk, Ended, desk
from regplug.testing.processes import start_processes
from regplug.testing.registry import CHECKS, RUNS, Check, registered
from regplug.testing.report import NOT_JUDGED, Report, Result
from regplug.testing.subject import Source
from regplug.testing.warming import warm

__all__ = ["check_plugin"]

MOST_ENDS = 3
"""Checks that may come to no end, of up to a minute each, before the rest is not judged."""


def check_plugin(
    spec: Source,
    *,
    checks: Sequence[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    model: Callable[[], nn.Module] | None = None,
    batch: Callable[[int], torch.Tensor] | None = None,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    where: Any = None,
    told: Callable[[str, int, int], object] | None = None,
) -> Report:
    """Examine a plugin, the whole of it: formula, loops, precision, ranks, state, failure.

    It sits the exam in a process of its own, where it may hang or end that process: the exam goes
    on with the next check, and ends with a report in any case. DDP and FSDP2 run in two real
    processes with a gloo group, which are started once and kept until this process ends, so a
    script that calls this at its top level wants the usual ``if __name__ == "__main__":``. Random
    numbers of the caller are left as they are. A check that depends on one that failed is not
    judged, so that one fault is one failure.

    Args:
        spec: a spec such as ``"name(1e-3)"``; or an instance, which is copied; or a callable
            without arguments that returns a new instance. For the distributed checks it must be
            possible to pickle it.
        checks: the ids of the checks to make, out of :data:`~regplug.testing.CHECKS`; None for all.
        expected_failures: ids of checks that are known to fail, each with the reason. A check
            that passes in every regime although it is listed here fails.
        model: returns a new model to try the plugin on, for one that needs more than a small
            network with linear layers, a normalization, dropout and a tied weight.
        batch: returns the model's inputs for ``n`` samples, a tensor of shape ``(n, …)``.
        loss: returns the mean loss, a 0-d tensor, of what the model puts out for inputs; None for a
            mean squared error.
        where: a selection for the plugin, in place of its own; None for its own.
        told: called before each check with its id, its number from 0 on, and how many there are.

    Returns:
        The report, with ``report.passed``, ``str(report)`` and ``report.as_json()``.

    Raises:
        SpecError: an id is unknown, or a spec is wrong.
        RegplugError: the plugin can't be made, or there is nothing in the model for it. What breaks
            the contract of hooks, stumbles, or refuses a plain loop, fails the check ``runs``.

    >>> report = check_plugin("l1(1e-3)", checks=["gradient", "proximal"])
    >>> report.passed
    True
    """
    wanted = _wanted(checks)
    expected = dict(expected_failures or {})
    _wanted(list(expected))
    usual = Bench()
    bench = Bench(
        usual.model if model is None else model, usual.batch if batch is None else batch, loss
    )
    paper = Paper(spec, bench, {} if where is None else {"where": where})
    started = time.monotonic()
    exam = _Exam(paper, wanted, expected, told)
    with warnings.catch_warnings():
        # Of a copy of a process with threads, among others: none of them is for the caller.
        warnings.simplefilter("ignore")
        try:
            results = list(exam.sit())
        finally:
            exam.close()
    return Report(exam.title, results, time.monotonic() - started, notes=exam.notes)


def _wanted(ids: Sequence[str] | None) -> list[Check]:
    for id in ids or ():  # noqa: A001
        if id not in CHECKS:
            raise SpecError(
                f"there is no check {id!r}; the nearest are {', '.join(nearest(id, CHECKS))}"
            )
    return [check for check in registered() if ids is None or check.id in ids]


class _Exam:
    """One plugin's exam, from the first desk to the last answer."""

    def __init__(
        self,
        paper: Paper,
        wanted: Sequence[Check],
        expected: Mapping[str, str],
        told: Callable[[str, int, int], object] | None,
    ) -> None:
        self._paper, self._wanted, self._expected, self._told = paper, wanted, expected, told
        self._desk: Desk | None = None
        self._ends = 0
        # Which failure is behind it, for each check that failed or was not judged.
        self._causes: dict[str, str] = {}
        self.title = paper.title
        self.notes: tuple[str, ...] = ()

    def sit(self) -> Iterator[Result]:
        """Yield the results of all checks, in their order."""
        warm([check.id for check in self._wanted])
        wanted = list(self._wanted)
        try:
            self._sit_down()
        except (Ended, PluginError, UnsupportedError) as error:
            # Nobody asked, and yet there is nothing else to say.
            wanted = [check for check in wanted if check.id != RUNS]
            self._causes[RUNS] = RUNS
            yield self._result(RUNS, Answer(EVERYWHERE, "failed", str(error)))
        else:
            # It takes them seconds, while other checks are made.
            if any(check.distributed for check in wanted):
                start_processes()
        for number, check in enumerate(wanted):
            if self._told is not None:
                self._told(check.id, number, len(wanted))
            yield from self._weighed(check.id, list(self._examine(check)))

    def _sit_down(self) -> Desk:
        if self._desk is None:
            self._desk = desk(self._paper)
            if self._desk.note:
                self.notes = (self._desk.note,)
            self.title = self._desk.attach()
        return self._desk

    def close(self) -> None:
        """Leave the desk."""
        if self._desk is not None:
            self._desk.close()
            self._desk = None

    def _result(self, check: str, answer: Answer) -> Result:
        return Result(self.title, check, answer.regime, answer.outcome, answer.message)

    def _examine(self, check: Check) -> Iterator[Answer]:
        cause = next((self._causes[e] for e in check.after if e in self._causes), None)
        if cause is not None:
            self._causes[check.id] = cause
            yield Answer(EVERYWHERE, NOT_JUDGED, f"because {cause} failed")
            return
        if self._ends >= MOST_ENDS:
            yield Answer(EVERYWHERE, NOT_JUDGED, f"because {self._ends} checks came to no end")
            return
        try:
            yield from self._sit_down().ask(check.id)
        except Ended as error:
            self._ends += 1
            if self._desk is not None:
                self._desk.stop()
                self._desk = None
            yield Answer(error.regime, "failed", str(error))

    def _weighed(self, check: str, answers: Sequence[Answer]) -> Iterator[Result]:
        """Yield the results of a check, failures that are expected told from others."""
        failed = any(answer.outcome == "failed" for answer in answers)
        if failed:
            self._causes[check] = check
        reason = self._expected.get(check)
        for answer in answers:
            if reason is not None and answer.outcome == "failed":
                message = f"{reason} ({answer.message})"
                yield self._result(check, Answer(answer.regime, "expected", message))
            else:
                yield self._result(check, answer)
        if reason is not None and not failed and any(a.outcome == "passed" for a in answers):
            message = f"it was expected to fail ({reason}), but passed: expect it no longer"
            yield self._result(check, Answer(EVERYWHERE, "failed", message))
