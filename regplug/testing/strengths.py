"""Checks of the strength: a number is what it says, and a schedule is followed step by step."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch

from regplug import schedules
from regplug.adaptive import Adaptive
from regplug.errors import RegplugError
from regplug.penalty import Penalty
from regplug.plugin import Scheduled
from regplug.testing.arguments import odd_numbers
from regplug.testing.bench import Rig, Setup
from regplug.testing.recipe import scheduled_name
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject

__all__: list[str] = []

# The numbers that modules have in a step, and the weights after it.
Moment = tuple[Mapping[str, float], Mapping[str, torch.Tensor]]

CHANGE = 2  # the first step with another strength
_READ = "read self.{name} in each event, and keep no copy of it"


def _moment(rig: Rig, step: int) -> Moment:
    numbers = rig.snapshot().numbers
    rig.step(step)
    return numbers, rig.snapshot().weights


def _moments(rig: Rig, steps: int = CHANGE + 2) -> list[Moment]:
    rig.move()
    return [_moment(rig, step) for step in range(steps)]


def _alike(one: Moment, other: Moment, rtol: float = 0.0) -> bool:
    (numbers, weights), (numbers_2, weights_2) = one, other
    if any(abs(numbers_2[name] - x) > 1e-7 for name, x in numbers.items()):
        return False
    if rtol:
        return all(
            torch.allclose(weights_2[n], w, rtol=rtol, atol=1e-12) for n, w in weights.items()
        )
    return all(torch.equal(weights_2[name], w) for name, w in weights.items())


def _with(setup: Setup, name: str, value: Any) -> Setup:
    return Setup(setup.source, setup.delivery, {**setup.values, name: value})


def _acts(subject: Subject, setup: Setup, constant: list[Moment]) -> None:
    plain = _moments(subject.rig(None))
    if all(_alike(one, other) for one, other in zip(constant, plain, strict=True)):
        raise Skip("it changed nothing here")


@check("strength", after=("arguments", "every-batch", "reproducible"))
def strength(subject: Subject) -> Iterable[Case]:
    """Each strength is what it is set to: by the constructor, before attach, and between steps.

    A penalty is linear in it: 2λ and λ·0.3712 bring 2 and 0.3712 times the gradient. For other
    plugins another number makes another run, in which what is set is what counts.
    """
    for attribute in subject.scheduled.values():
        for setup in subject.setups():
            regime = f"{attribute.name}, {setup.regime}"
            is_penalty = isinstance(subject.plugin, Penalty) and attribute.name == "strength"
            if is_penalty and setup.delivery in ("step", "loss"):
                yield f"{regime}, linear", partial(_linear, subject, setup)
            yield f"{regime}, set", partial(_set, subject, setup, attribute)
            yield f"{regime}, set later", partial(_set_later, subject, setup, attribute)


def _linear(subject: Subject, setup: Setup) -> None:
    plain = subject.rig(None).move().pulls(0)

    def added(factor: float) -> dict[str, torch.Tensor]:
        stronger = subject.changed(setup, lambda value: value * factor, {"strength"})
        found = subject.rig(stronger).move().pulls(0)
        return {name: found[name] - pull for name, pull in plain.items()}

    once = {name: pull for name, pull in added(1.0).items() if float(pull.abs().max()) > 1e-9}
    if not once:
        raise Skip("it adds to no gradient in the first step here")
    for factor in (2.0, 0.3712, 20.0):
        found = added(factor)
        for name, pull in once.items():
            scale = float(pull.abs().max())
            if not torch.allclose(
                found[name], factor * pull, rtol=1e-6, atol=1e-6 * factor * scale
            ):
                ratio = float(found[name].norm() / pull.norm())
                raise Failure(
                    f"with {factor:g} times the strength what it adds to the gradient of {name} is "
                    f"{ratio:.4g} times as long: leave λ to the penalty, and round or change it "
                    "nowhere"
                )


def _set(subject: Subject, setup: Setup, attribute: Scheduled) -> None:
    """What is set on an instance before attach is as good as what the constructor was given."""
    first, second = odd_numbers(subject, attribute)
    one = _moments(subject.rig(_with(setup, attribute.name, first)))
    _acts(subject, setup, one)
    other = _moments(subject.rig(_with(setup, attribute.name, second)))
    if all(_alike(a, b) for a, b in zip(one, other, strict=True)):
        raise Failure(
            f"with {attribute.name} = {first:g} it does to the bit what it does with {second:g}: "
            + _READ.format(name=attribute.name)
        )
    if attribute.off == 0:  # not a share of a number of things, which comes in steps
        little = _moments(subject.rig(_with(setup, attribute.name, first * 1.001)))
        if all(_alike(a, b) for a, b in zip(one, little, strict=True)):
            raise Failure(
                f"with {attribute.name} = {first:.6g} and {first * 1.001:.6g} it does the same, to "
                "the bit: round it nowhere"
            )
    recipe = subject.recipe
    for argument in recipe.parameters:
        if attribute.name in (argument, scheduled_name(argument)):
            made = recipe.but(**{argument: first})
            values = {k: v for k, v in setup.values.items() if k != attribute.name}
            built = _moments(subject.rig(Setup(made, setup.delivery, values)))
            if not all(_alike(a, b) for a, b in zip(one, built, strict=True)):
                raise Failure(
                    f"made with {argument}={first:g} it acts otherwise than with "
                    f"{attribute.name} = {first:g} set afterwards: "
                    + _READ.format(name=attribute.name)
                )


def _set_later(subject: Subject, setup: Setup, attribute: Scheduled) -> None:
    first, second = odd_numbers(subject, attribute)
    constant = _moments(subject.rig(_with(setup, attribute.name, first)))
    _acts(subject, setup, constant)
    rig = subject.rig(_with(setup, attribute.name, first)).move()
    found = []
    for step in range(len(constant)):
        if step == CHANGE:
            setattr(rig.plugin, attribute.name, second)
        found.append(_moment(rig, step))
    if all(_alike(a, b) for a, b in zip(constant, found, strict=True)):
        raise Failure(
            f"{attribute.name} set from {first:g} to {second:g} between two steps changes nothing: "
            + _READ.format(name=attribute.name)
        )


@check("schedule", after=("arguments", "strength", "delivery"))
def schedule(subject: Subject) -> Iterable[Case]:
    """A schedule is followed in each step: not frozen, and neither a step early nor a step late.

    Up to the step in which it changes the run is that of the constant, in that step it is not. Off
    means the bits of a loop without the plugin, in just the steps that say so, also at the start.
    """
    for attribute in subject.scheduled.values():
        if isinstance(subject.plugin, Adaptive) and attribute.name in subject.plugin.adapts:
            continue  # it follows what is measured, and no schedule
        for setup in subject.setups():
            regime = f"{attribute.name}, {setup.regime}"
            yield f"{regime}, changes", partial(_changes, subject, setup, attribute)
            if attribute.off is not None:
                yield f"{regime}, off and on", partial(_off_and_on, subject, setup, attribute)
    known = set(subject.scheduled)
    for argument, value in _numbers(subject).items():
        if not {argument, scheduled_name(argument)} & known:
            yield argument, partial(_argument, subject, argument, value)


def _numbers(subject: Subject) -> dict[str, float]:
    """Return the arguments that were given as numbers or schedules."""
    found = {}
    for argument, value in subject.recipe.values.items():
        if isinstance(value, schedules.Schedule):
            found[argument] = float(value(0)) or float(value(10_000))
        elif isinstance(value, float) or (argument == "strength" and isinstance(value, int)):
            found[argument] = float(value)
    return {argument: value for argument, value in found.items() if value}


def _follows(
    constant: list[Moment], found: list[Moment], name: str, first: float, second: float
) -> None:
    for step in range(CHANGE):
        if not _alike(constant[step], found[step], 1e-9):
            raise Failure(
                f"{name} is {first:g} until step {CHANGE - 1} and {second:g} from step {CHANGE} "
                f"on, but already in step {step} it does not do what it does with {first:g}: "
                "self._step and self.session.steps count completed steps, and need no + 1"
            )
    if all(_alike(a, b) for a, b in zip(constant, found, strict=True)):
        raise Failure(
            f"{name} goes from {first:g} to {second:g} in step {CHANGE}, and it goes on with "
            f"{first:g}: " + _READ.format(name=name)
        )
    if _alike(constant[CHANGE], found[CHANGE]):
        raise Failure(
            f"{name} goes from {first:g} to {second:g} in step {CHANGE}, but that step still has "
            f"{first:g}: it is late; what is set after a step for the next one is the value at "
            "session.steps + 1"
        )


def _changes(subject: Subject, setup: Setup, attribute: Scheduled) -> None:
    first, second = odd_numbers(subject, attribute)
    constant = _moments(subject.rig(_with(setup, attribute.name, first)))
    _acts(subject, setup, constant)
    scheduled = schedules.piecewise({0: first, CHANGE: second})
    found = _moments(subject.rig(_with(setup, attribute.name, scheduled)))
    _follows(constant, found, attribute.name, first, second)
    if isinstance(subject.plugin, Penalty):
        rig = subject.rig(_with(setup, attribute.name, first)).move()
        for step in range(CHANGE):
            rig.step(step)
        setattr(rig.plugin, attribute.name, second)
        if not _alike(_moment(rig, CHANGE), found[CHANGE], 1e-9):
            raise Failure(
                f"in step {CHANGE} a schedule of {attribute.name} that says {second:g} acts "
                f"otherwise than {second:g} itself"
            )


def _off_and_on(subject: Subject, setup: Setup, attribute: Scheduled) -> None:
    first, _ = odd_numbers(subject, attribute)
    off = attribute.off
    assert off is not None
    constant = _moments(subject.rig(_with(setup, attribute.name, first)))
    _acts(subject, setup, constant)
    waking = schedules.piecewise({0: off, 1: first, CHANGE: off, CHANGE + 1: first})
    rig = subject.rig(_with(setup, attribute.name, waking)).move()
    silent = subject.rig(_with(setup, attribute.name, off))
    for step in range(CHANGE + 2):
        is_off = waking(step) == off
        start = rig.snapshot().weights
        with torch.no_grad():
            for name, parameter in silent.parameters.items():
                parameter.copy_(start[name])
        found, without = _moment(rig, step), _moment(silent, step)
        if is_off and not _alike(found, without):
            raise Failure(
                f"{attribute.name} is {off:g} in step {step}, and yet that step is not the one of "
                f"a loop without it: " + _READ.format(name=attribute.name)
            )
        if not is_off and _alike(found, without) and not _alike(constant[0], _first(subject)):
            raise Failure(
                f"{attribute.name} is {first:g} in step {step} after {off:g} before, and it does "
                "nothing: being off at one time must not turn it off for good"
            )


def _first(subject: Subject) -> Moment:
    return _moment(subject.rig(None).move(), 0)


def _argument(subject: Subject, argument: str, value: float) -> None:
    """Look at an argument that no scheduled attribute stands for, if it takes a schedule at all."""

    def run(given: object) -> list[Moment]:
        return _moments(subject.rig(Setup(subject.recipe.but(**{argument: given}))))

    other = value / 2
    try:
        constant, halved = run(value), run(other)
    except (RegplugError, TypeError, ValueError, AttributeError) as error:
        raise Skip(f"{argument} can't be {other:g}") from error
    if all(_alike(a, b) for a, b in zip(constant, halved, strict=True)):
        if argument != "strength" or _same_as_plain(subject, constant):
            raise Skip(f"{argument} makes no difference here")
        raise Failure(
            f"strength={value:g} and strength={other:g} do the same, to the bit: it is taken and "
            "forgotten; say strength = regplug.Scheduled() in the class, and set it in __init__"
        )
    try:
        found = run(schedules.piecewise({0: value, CHANGE: other}))
    except (RegplugError, TypeError, ValueError, AttributeError) as error:
        raise Skip(f"{argument} takes no schedule") from error
    try:
        _follows(constant, found, argument, value, other)
    except Failure as failure:
        raise Failure(
            f"{failure}; or say {argument} = regplug.Scheduled() in the class, and read that"
        ) from failure


def _same_as_plain(subject: Subject, constant: list[Moment]) -> bool:
    plain = _moments(subject.rig(None))
    return all(_alike(a, b) for a, b in zip(constant, plain, strict=True))
