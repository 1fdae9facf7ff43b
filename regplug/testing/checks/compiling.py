"""The check under ``torch.compile``: how often a model is compiled while a plugin acts on it."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from regplug import schedules
from regplug.testing.bench import Rig, Setup
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Subject

__all__: list[str] = []

WARM_UP, FURTHER = 3, 4


@check("compile")
def compiles(subject: Subject) -> Iterable[Case]:
    """A compiled model is not compiled again and again while strengths change from step to step."""
    lowest = max((attribute.low for attribute in subject.scheduled.values()), default=0.0)
    changing = subject.by_pattern(
        subject.steady(), lambda value: schedules.linear(value, max(value / 2, lowest), steps=50)
    )

    def run(setup: Setup) -> None:
        early, late = _compilations(subject, setup)
        _, without = _compilations(subject, None)
        if late > without:
            raise Failure(
                f"after {WARM_UP} steps the model had been compiled {early} times, and {late} "
                f"times more in the {FURTHER} steps after: a number that changes should be kept in "
                "a tensor, not in a Python attribute that the forward pass reads"
            )

    setup = Setup(subject.source, subject.deliveries[0], {**subject.values, **changing})
    yield setup.regime, partial(run, setup)


def _compilations(subject: Subject, setup: Setup | None) -> tuple[int, int]:
    """Return how many graphs were compiled while warming up, and how many later."""
    counted = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        nonlocal counted
        counted += 1
        return graph.forward

    torch.compiler.reset()
    try:
        rig: Rig = subject.rig(
            setup, calm=False, wrap=lambda model: torch.compile(model, backend=backend)
        )
        rig.run(WARM_UP)
        early = counted
        for step in range(WARM_UP, WARM_UP + FURTHER):
            rig.step(step)
        rig.detach()
    finally:
        torch.compiler.reset()
    return early, counted - early
