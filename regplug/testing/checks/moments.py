"""Runs in which a strength is set otherwise, moment by moment, and how they are compared."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from regplug.testing.bench import Rig, Setup
from regplug.testing.subject import Skip, Subject

__all__ = ["CHANGE", "READ", "Moment", "acting", "alike", "moment", "moments"]

# The numbers that modules have in a step, and the weights after it.
Moment = tuple[Mapping[str, float], Mapping[str, torch.Tensor]]

CHANGE = 2  # the first step with another strength
READ = "read self.{name} in each event, and keep no copy of it"


def moment(rig: Rig, step: int) -> Moment:
    """Make a step and return what the modules were set to in it, and the weights after it."""
    numbers = rig.snapshot().numbers
    rig.step(step)
    return numbers, rig.snapshot().weights


def moments(rig: Rig, steps: int = CHANGE + 2) -> list[Moment]:
    """Make that many steps and return what there was in each."""
    rig.move()
    return [moment(rig, step) for step in range(steps)]


def alike(one: Moment, other: Moment, rtol: float = 0.0) -> bool:
    """Tell whether two moments are the same, with ``rtol=0`` to the bit."""
    (numbers, weights), (numbers_2, weights_2) = one, other
    if numbers.keys() != numbers_2.keys():  # a module has got a number of its own
        return False
    # What is kept in single precision is the same as what was rounded to it.
    if not all(
        math.isclose(numbers_2.get(n, math.nan), x, rel_tol=2e-7, abs_tol=1e-12)
        for n, x in numbers.items()
    ):
        return False
    if rtol:
        return all(
            torch.allclose(weights_2[n], w, rtol=rtol, atol=1e-12) for n, w in weights.items()
        )
    return all(torch.equal(weights_2[name], w) for name, w in weights.items())


def acting(subject: Subject, setup: Setup, name: str, value: Any) -> list[Moment]:
    """Return the moments of a run with an attribute set to a value.

    Raises:
        Skip: they are those of a run without the plugin.
    """
    constant = moments(subject.rig(setup.but(**{name: value})))
    plain = moments(subject.rig(None))
    if all(alike(one, other) for one, other in zip(constant, plain, strict=True)):
        raise Skip("it changed nothing here")
    return constant
