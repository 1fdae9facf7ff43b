"""The exam itself: :func:`check_plugin`."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from regplug.backend.words import nearest
from regplug.errors import RegplugError, SpecError
from regplug.testing import (  # noqa: F401 - each registers its checks
    compiling,
    coverage,
    distributed,
    failing,
    formula,
    restoring,
    saving,
    steps,
    training,
)
from regplug.testing.bench import Bench
from regplug.testing.processes import processes
from regplug.testing.registry import CHECKS, Check, registered
from regplug.testing.report import Report, Result
from regplug.testing.subject import Failure, Skip, Source, Subject

__all__ = ["check_plugin"]

EVERYWHERE = "–"


def check_plugin(
    spec: Source,
    *,
    checks: Sequence[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    model: Callable[[], nn.Module] | None = None,
    batch: Callable[[int], torch.Tensor] | None = None,
) -> Report:
    """Examine a plugin, the whole of it: formula, loops, precision, ranks, state, failure.

    DDP and FSDP2 run in two real processes with a gloo group, which are started once and kept
    until this process ends, so a script that calls this at its top level wants the usual
    ``if __name__ == "__main__":``. Random numbers of the caller are left as they are.

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

    Returns:
        The report, with ``report.passed``, ``str(report)`` and ``report.as_json()``.

    Raises:
        SpecError: an id is unknown, or a spec is wrong.
        RegplugError: the plugin can't be made, or can't be attached to the model.

    >>> report = check_plugin("l1(1e-3)", checks=["gradient", "proximal"])
    >>> report.passed
    True
    """
    wanted = _wanted(checks)
    expected = dict(expected_failures or {})
    _wanted(list(expected))
    usual = Bench()
    bench = Bench(usual.model if model is None else model, usual.batch if batch is None else batch)
    subject = Subject(spec, bench)
    started = time.monotonic()
    with _own_settings():
        _attachable(subject)
        if any(check.distributed for check in wanted):
            processes().start()
        results = list(_sit(subject, wanted, expected))
    return Report(subject.title, results, time.monotonic() - started)


@contextmanager
def _own_settings() -> Iterator[None]:
    """Leave the caller's random numbers, threads and warnings as they are."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
        # Warnings are for those who train.
        warnings.simplefilter("ignore")
        # The models are tiny: more threads than one wait for each other.
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _wanted(ids: Sequence[str] | None) -> list[Check]:
    for id in ids or ():  # noqa: A001
        if id not in CHECKS:
            raise SpecError(
                f"there is no check {id!r}; the nearest are {', '.join(nearest(id, CHECKS))}"
            )
    return [check for check in registered() if ids is None or check.id in ids]


def _attachable(subject: Subject) -> None:
    """Raise what attaching raises before any question is asked."""
    subject.rig(subject.given(None)).detach()


def _sit(
    subject: Subject, wanted: Sequence[Check], expected: Mapping[str, str]
) -> Iterator[Result]:
    failed: set[str] = set()
    for check in wanted:
        results = list(_examine(subject, check, failed))
        if any(result.outcome == "failed" for result in results):
            failed.add(check.id)
        reason = expected.get(check.id)
        if reason is None:
            yield from results
            continue
        for result in results:
            if result.outcome == "failed":
                message = f"{reason} ({result.message})"
                yield Result(result.plugin, check.id, result.regime, "expected", message)
            else:
                yield result
        if check.id not in failed and any(r.outcome == "passed" for r in results):
            message = f"it was expected to fail ({reason}), but passed: expect it no longer"
            yield Result(subject.title, check.id, EVERYWHERE, "failed", message)


def _examine(subject: Subject, check: Check, failed: set[str]) -> Iterator[Result]:
    def result(regime: str, outcome: str, message: object = "") -> Result:
        return Result(subject.title, check.id, regime, outcome, str(message))

    for earlier in check.after:
        if earlier in failed:
            yield result(EVERYWHERE, "skipped", f"can't be judged: {earlier} failed")
            return
    try:
        cases = list(check.cases(subject))
    except Skip as why:
        yield result(EVERYWHERE, "skipped", why)
        return
    except Exception as error:
        yield result(EVERYWHERE, "failed", _message(error))
        return
    for regime, run in cases:
        try:
            run()
        except Skip as why:
            yield result(regime, "skipped", why)
        except Failure as failure:
            yield result(regime, "failed", failure)
        except Exception as error:
            yield result(regime, "failed", _message(error))
        else:
            yield result(regime, "passed")


def _message(error: BaseException) -> str:
    if isinstance(error, RegplugError):
        return str(error)
    return f"{type(error).__name__}: {error}"
