"""The list of all checks: each module of checks puts its own into it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from regplug.testing.subject import Subject

__all__ = ["CHECKS", "EXAM", "RUNS", "Case", "Check", "check", "registered"]

EXAM = 2
"""The version of the exam: another whenever a plugin may pass one and fail the other."""

RUNS, MODES, SURROUNDINGS, ACTS = "runs", "modes", "surroundings", "acts"
"""The ids of the checks that come first: all depend on the first, and all later ones on the second;
and of the one without which no exam is passed."""

# The order in which an exam asks: whether it acts at all, the formula, one step, whole runs. What
# may be the cause of another failure stands before it.
CHECKS = (
    RUNS,
    SURROUNDINGS,
    MODES,
    "streams",
    "reproducible",
    ACTS,
    "cost",
    "pure",
    "arguments",
    "differentiable",
    "loss-event",
    "attach-again",
    "gradient",
    "finite-difference",
    "dtype",
    "extremes",
    "memory-order",
    "where",
    "every-batch",
    "adds",
    "strength",
    "clipping",
    "delivery",
    "schedule",
    "shapes",
    "zero-strength",
    "fresh-draws",
    "untouched",
    "input-grad",
    "proximal",
    "projection",
    "separable",
    "accumulation",
    "overflow",
    "restore",
    "stopped-attach",
    "maximize",
    "groups",
    "learning-rate",
    "no-optimizer",
    "checkpoint-step",
    "closure",
    "interludes",
    "late-weights",
    "metrics",
    "describe",
    "autocast",
    "collective",
    "ddp",
    "fsdp2",
    "ranks",
    "state",
    "resume",
    "device",
    "copies",
    "leak",
    "memory",
    "growth",
    "order",
    "attribution",
    "compile",
)
"""The ids of all checks, in the order of the exam."""

FOUNDATIONS = (RUNS, MODES, "reproducible", "pure", "loss-event", "attach-again")
"""Checks without which none that comes later can be judged, where loops are compared."""

Case: TypeAlias = tuple[str, Callable[[], object]]
"""A regime and what is done in it: raise a ``Failure`` or ``Skip``, or anything by accident."""

Cases: TypeAlias = Callable[[Subject], Iterable[Case]]


@dataclass(frozen=True)
class Check:
    """One question of the exam.

    Attributes:
        id: as in :data:`CHECKS`.
        cases: yields the regimes for a subject; may raise ``Skip`` instead.
        after: checks without which this one could not be judged.
        distributed: whether it needs the process group.
    """

    id: str
    cases: Cases
    after: tuple[str, ...] = ()
    distributed: bool = False


_registered: dict[str, Check] = {}


def check(
    id: str,  # noqa: A002 - it is one
    *,
    after: tuple[str, ...] = (),
    distributed: bool = False,
) -> Callable[[Cases], Cases]:
    """Register a function that yields the cases of a check."""

    def register(cases: Cases) -> Cases:
        assert id in CHECKS, id
        before = [other for other in FOUNDATIONS if CHECKS.index(other) < CHECKS.index(id)]
        _registered[id] = Check(id, cases, (*before, *after), distributed)
        return cases

    return register


def registered() -> Iterator[Check]:
    """Yield all checks in the order of the exam."""
    for id in CHECKS:  # noqa: A001
        yield _registered[id]
