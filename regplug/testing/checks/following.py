"""Check of schedules: each is followed step by step."""

from collections.abc import Callable, Iterable
from functools import partial

import torch

from regplug import schedules
from regplug.bases.adaptive import Adaptive
from regplug.bases.delivered import Delivered
from regplug.errors import RegplugError
from regplug.plugin import Scheduled
from regplug.testing.bench import Setup
from regplug.testing.checks.arguments import odd_numbers
from regplug.testing.checks.counting import passes, resumed
from regplug.testing.checks.moments import (
    CHANGE,
    READ,
    Moment,
    acting,
    alike,
    moment,
    moments,
)
from regplug.testing.recipe import scheduled_name
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject

__all__: list[str] = []

# What the strength of a plugin is called, if it is not called that.
_STRENGTHS = (
    "strength",
    "alpha",
    "lam",
    "lambda_",
    "coefficient",
    "rate",
    "factor",
)


@check("schedule", after=("arguments", "strength", "delivery"))
def schedule(subject: Subject) -> Iterable[Case]:
    """A schedule is followed in each step: not frozen, and neither a step early nor a step late.

    A step is one of the session: with several backward passes, and in a resumed run too.
    What does nothing but move weights after a step may go by the value of the step that comes.
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
            yield f"{regime}, several passes", partial(passes, subject, setup, attribute)
            yield f"{regime}, resumed", partial(resumed, subject, setup, attribute)
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
    constant: list[Moment],
    found: list[Moment],
    name: str,
    first: float,
    second: float,
    ahead: int = 0,
) -> None:
    for step in range(CHANGE - ahead):
        if not alike(constant[step], found[step], 1e-9):
            raise Failure(
                f"{name} is {first:g} until step {CHANGE - 1} and {second:g} from step {CHANGE} "
                f"on, but already in step {step} it does not do what it does with {first:g}: "
                "self._step and self.session.steps count completed steps, and need no + 1"
            )
    if all(alike(a, b) for a, b in zip(constant, found, strict=True)):
        raise Failure(
            f"{name} goes from {first:g} to {second:g} in step {CHANGE}, and it goes on with "
            f"{first:g}: " + READ.format(name=name)
        )
    if alike(constant[CHANGE], found[CHANGE]):
        raise Failure(
            f"{name} goes from {first:g} to {second:g} in step {CHANGE}, but that step still has "
            f"{first:g}: it is late; what is set after a step for the next one is the value at "
            "session.steps + 1"
        )


def _with_change(subject: Subject, setup: Setup, attribute: Scheduled) -> list[Moment]:
    """Return the moments of a run in which a schedule goes from one number to another."""
    first, second = odd_numbers(subject, attribute)
    scheduled = schedules.piecewise({0: first, CHANGE: second})
    return moments(subject.rig(setup.but(**{attribute.name: scheduled})))


def _ahead(
    subject: Subject, constant: list[Moment], with_change: Callable[[], list[Moment]]
) -> int:
    """Return by how many steps it is right to be early.

    What puts weights somewhere after a step does that for the next one, and may go by its value.
    """
    if isinstance(subject.plugin, Delivered) or not subject.implements("after_step"):
        return 0
    if any(subject.implements(hook) for hook in ("on_loss", "on_gradients", "before_step")):
        return 0
    # What modules are set to is another matter: that is what the step itself has.
    (_, before), (_, weights) = constant[CHANGE - 1], with_change()[CHANGE - 1]
    return int(not alike(({}, before), ({}, weights), 1e-9))


def _changes(subject: Subject, setup: Setup, attribute: Scheduled) -> None:
    first, second = odd_numbers(subject, attribute)
    constant = acting(subject, setup, attribute.name, first)
    found = _with_change(subject, setup, attribute)
    ahead = _ahead(subject, constant, lambda: found)
    _follows(constant, found, attribute.name, first, second, ahead)
    if isinstance(subject.plugin, Delivered):
        rig = subject.rig(setup.but(**{attribute.name: first})).move()
        for step in range(CHANGE):
            rig.step(step)
        setattr(rig.plugin, attribute.name, second)
        if not alike(moment(rig, CHANGE), found[CHANGE], 1e-9):
            raise Failure(
                f"in step {CHANGE} a schedule of {attribute.name} that says {second:g} acts "
                f"otherwise than {second:g} itself"
            )


def _off_and_on(subject: Subject, setup: Setup, attribute: Scheduled) -> None:
    first, _ = odd_numbers(subject, attribute)
    off = attribute.off
    assert off is not None
    constant = acting(subject, setup, attribute.name, first)
    waking = schedules.piecewise({0: off, 1: first, CHANGE: off, CHANGE + 1: first})
    rig = subject.rig(setup.but(**{attribute.name: waking})).move()
    silent = subject.rig(setup.but(**{attribute.name: off}))
    ahead = _ahead(subject, constant, partial(_with_change, subject, setup, attribute))
    for step in range(CHANGE + 2):
        is_off = waking(step + ahead) == off
        start = rig.snapshot().weights
        with torch.no_grad():
            for name, parameter in silent.parameters.items():
                parameter.copy_(start[name])
        found, without = moment(rig, step), moment(silent, step)
        if is_off and not alike(found, without):
            raise Failure(
                f"{attribute.name} is {off:g} in step {step}, and yet that step is not the one of "
                f"a loop without it: " + READ.format(name=attribute.name)
            )
        if not is_off and alike(found, without) and not alike(constant[0], _first(subject)):
            raise Failure(
                f"{attribute.name} is {first:g} in step {step} after {off:g} before, and it does "
                "nothing: being off at one time must not turn it off for good"
            )


def _first(subject: Subject) -> Moment:
    return moment(subject.rig(None).move(), 0)


def _argument(subject: Subject, argument: str, value: float) -> None:
    """Look at an argument that no scheduled attribute stands for, if it takes a schedule at all."""

    def run(given: object) -> list[Moment]:
        return moments(subject.rig(Setup(subject.recipe.but(**{argument: given}))))

    def forgotten(given: float) -> bool:
        try:
            return all(alike(a, b) for a, b in zip(constant, run(given), strict=True))
        except (RegplugError, TypeError, ValueError, AttributeError):
            return False

    other = value / 2
    try:
        constant, halved = run(value), run(other)
    except (RegplugError, TypeError, ValueError, AttributeError) as error:
        raise Skip(f"{argument} can't be {other:g}") from error
    if all(alike(a, b) for a, b in zip(constant, halved, strict=True)):
        # A penalty has its strength first, whatever the name.
        first = subject.recipe.parameters[:1] if isinstance(subject.plugin, Delivered) else ()
        if (
            argument not in (*_STRENGTHS, *first)
            or _same_as_plain(subject, constant)
            or not forgotten(2 * value)
        ):
            raise Skip(f"{argument} makes no difference here")
        raise Failure(
            f"{argument}={value:g} and {argument}={other:g} do the same, to the bit: it is taken "
            f"and forgotten; say {argument} = regplug.Scheduled() in the class, and set it in "
            "__init__"
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
    plain = moments(subject.rig(None))
    return all(alike(a, b) for a, b in zip(constant, plain, strict=True))
