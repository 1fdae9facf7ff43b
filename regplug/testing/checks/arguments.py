"""Check of what a plugin makes of its arguments: it has what it was given, and no other has it."""

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from regplug import schedules
from regplug.bases.delivered import DELIVERIES, Delivered
from regplug.bases.selective import Selective
from regplug.errors import RegplugError
from regplug.plugin import Plugin, Scheduled
from regplug.testing.recipe import Recipe, scheduled_name
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject

__all__: list[str] = []

_FORGOTTEN = "its __init__ should set it, or pass it on to super().__init__"


@check("arguments")
def arguments(subject: Subject) -> Iterable[Case]:
    """What the constructor takes is there afterwards: name, where, delivery, and each strength.

    Numbers and schedules come back exactly, an argument with a wrong name is refused, what was
    given (a list, a dict) is left as it was, and a second instance changes nothing in the first.
    """
    recipe = subject.recipe
    for argument, run in (("name", _name), ("where", _where), ("delivery", _delivery)):
        if recipe.takes(argument) and (argument == "name" or _has(subject, argument)):
            yield argument, partial(run, subject, recipe)
    for attribute, argument in _scheduled(subject, recipe):
        yield attribute.name, partial(_number, subject, recipe, attribute, argument)
        regime = f"{attribute.name}, a schedule"
        yield regime, partial(_schedule, subject, recipe, attribute, argument)
    if recipe.takes_any:
        yield "an unknown argument", partial(_unknown, recipe)
    yield "given things stay", partial(_left_alone, subject, recipe)
    yield "two instances", partial(_apart, subject, recipe)


def _has(subject: Subject, argument: str) -> bool:
    return isinstance(subject.plugin, Selective if argument == "where" else Delivered)


def _scheduled(subject: Subject, recipe: Recipe) -> Iterable[tuple[Scheduled, str]]:
    """Yield the scheduled attributes that are set by an argument, each with its name."""
    for name, attribute in subject.scheduled.items():
        for parameter in recipe.parameters:
            if name in (parameter, scheduled_name(parameter)):
                yield attribute, parameter
                break


def _made(make: Callable[[], Plugin], words: str) -> Plugin:
    try:
        return make()
    except (RegplugError, TypeError) as error:
        raise Failure(f"its constructor takes {words}, and then fails: {error}") from error


def _compare(plugin: object, attribute: str, expected: object, words: str) -> None:
    found = getattr(plugin, attribute)
    if found != expected:
        raise Failure(f"made with {words}, its {attribute} is {found!r}: {_FORGOTTEN}")


def _open(recipe: Recipe, argument: str, value: object) -> Plugin:
    """Make one with an argument that ``**kwargs`` may or may not be for."""
    make = recipe.but(**{argument: value})
    if argument in recipe.parameters:
        return _made(make, argument)
    try:
        return make()
    except (RegplugError, TypeError) as error:
        raise Skip(f"it takes no {argument}") from error


def _name(subject: Subject, recipe: Recipe) -> None:
    plugin = _open(recipe, "name", "of_the_exam")
    _compare(plugin, "name", "of_the_exam", "name='of_the_exam'")
    rig = subject.rig(None)
    try:
        rig.attach(plugin)
    except RegplugError as error:
        raise Skip(f"it can't be attached with another name: {error}") from error
    if plugin.name != "of_the_exam":
        raise Failure(
            f"made with name='of_the_exam', it is called {plugin.name!r} once it is attached: "
            "on_attach leaves alone what the constructor was given"
        )


def _where(subject: Subject, recipe: Recipe) -> None:
    for where in ("of_the_exam.*", ["weights", "!of_the_exam"]):
        _compare(_open(recipe, "where", where), "where", where, f"where={where!r}")


def _delivery(subject: Subject, recipe: Recipe) -> None:
    for delivery in DELIVERIES:
        try:
            plugin = recipe.but(delivery=delivery)()
        except (RegplugError, TypeError) as error:
            if delivery in ("auto", "proximal") or "delivery" not in recipe.parameters:
                continue  # it may refuse what it can't be
            if isinstance(error, RegplugError):
                continue
            raise Failure(f"its constructor takes delivery, and then fails: {error}") from error
        if delivery == "proximal" and not subject.has_operator:
            raise Failure(
                "made with delivery='proximal' it says nothing, though it has no proximal operator:"
                f" {_FORGOTTEN}"
            )
        _compare(plugin, "delivery", delivery, f"delivery={delivery!r}")


def odd_numbers(subject: Subject, attribute: Scheduled) -> tuple[float, float]:
    """Return two values that an attribute may have, with many digits, no whole number among them.

    They are near those that were given, where it is known that something happens.
    """
    start = subject.steady()[attribute.name] or min(0.05, attribute.high)
    first, second = start * 0.8123456789, start * 0.4123456789
    if first < attribute.low or second < attribute.low:
        span = min(attribute.high, attribute.low + 1.0) - attribute.low
        first, second = (attribute.low + share * span for share in (0.8123456789, 0.4123456789))
    return first, second


def _number(subject: Subject, recipe: Recipe, attribute: Scheduled, argument: str) -> None:
    for value in odd_numbers(subject, attribute):
        plugin = _made(recipe.but(**{argument: value}), f"{argument}={value!r}")
        # Another argument may say that it is reached in the end only.
        later = [attribute.at(plugin, step) for step in (1, 10, 100, 10_000)]
        if value not in later:
            _compare(plugin, attribute.name, value, f"{argument}={value!r}")


def _schedule(subject: Subject, recipe: Recipe, attribute: Scheduled, argument: str) -> None:
    first, second = odd_numbers(subject, attribute)
    given = schedules.piecewise({0: first, 1: second, 3: first})
    try:
        plugin = recipe.but(**{argument: given})()
    except RegplugError as error:
        if set(recipe.given) <= {argument}:
            raise Failure(f"its constructor takes no schedule as {argument}: {error}") from error
        raise Skip(f"beside its other arguments it takes no schedule: {error}") from error
    found = [attribute.at(plugin, step) for step in range(4)]
    expected = [given(step) for step in range(4)]
    if found != expected:
        raise Failure(
            f"made with a schedule of {expected} as {argument}, its {attribute.name} in these steps"
            f" is {found}: set the attribute to what was given, not to its value now"
        )


def _unknown(recipe: Recipe) -> None:
    try:
        recipe.but(of_the_exam=1)()
    except (RegplugError, TypeError):
        return
    raise Failure(
        "it takes any keyword and forgets it, so that nobody is told of a misspelt one: name the "
        "arguments, or pass **kwargs on to super().__init__"
    )


def _left_alone(subject: Subject, recipe: Recipe) -> None:
    changes: dict[str, Any] = {}
    if recipe.takes("where") and _has(subject, "where"):
        parameters = subject.rig(None).parameters
        changes["where"] = [name for name, p in parameters.items() if p.ndim > 1]
    given = {**{k: v for k, v in recipe.given.items() if _may_change(v)}, **changes}
    if not given:
        raise Skip("it was given nothing that could be changed")
    before = copy.deepcopy(given)
    rig = subject.rig(None)
    try:
        rig.attach(recipe.but(**given)())
        rig.run(2)
    except RegplugError as error:  # what it makes of where is a question of its own
        raise Skip(f"it can't be attached, or trained, with {given}: {error}") from error
    rig.detach()
    for argument, value in given.items():
        if repr(value) != repr(before[argument]):
            raise Failure(
                f"it changed what it was given as {argument}: {value!r}, was {before[argument]!r}; "
                "change a copy"
            )


def _may_change(value: object) -> bool:
    return isinstance(value, list | dict | set)


def _apart(subject: Subject, recipe: Recipe) -> None:
    """A second instance, made otherwise, leaves the first as it was."""
    changes: dict[str, tuple[Any, Any]] = {}
    read: dict[str, str] = {}
    for attribute, argument in _scheduled(subject, recipe):
        changes[argument], read[argument] = odd_numbers(subject, attribute), attribute.name
    for argument, value in recipe.values.items():
        is_number = isinstance(value, float) and value and argument not in changes
        if is_number and isinstance(getattr(subject.plugin, argument, None), float):
            changes[argument], read[argument] = (value, 0.8123 * value), argument
    for argument, values in (
        ("where", ("of_the_exam.*", "another.*")),
        ("name", ("first", "second")),
    ):
        if argument in recipe.parameters and (argument == "name" or _has(subject, argument)):
            changes[argument], read[argument] = values, argument
    if not changes:
        raise Skip("it takes no argument that is looked at here")
    first = recipe.but(**{argument: one for argument, (one, _) in changes.items()})()
    before = {argument: getattr(first, name) for argument, name in read.items()}
    recipe.but(**{argument: other for argument, (_, other) in changes.items()})()
    for argument, name in read.items():
        if (now := getattr(first, name)) != before[argument]:
            raise Failure(
                f"a second instance turned the {name} of the first from {before[argument]!r} to "
                f"{now!r}: keep it on self, not on the class, in a module or in a default argument"
            )
