"""Check of the strength: a number is what it says, wherever it comes from."""

from collections.abc import Iterable
from functools import partial

import torch

from regplug.backend.marks import is_hook
from regplug.bases.adaptive import Adaptive
from regplug.bases.delivered import Delivered
from regplug.bases.selective import Selective
from regplug.errors import RegplugError
from regplug.plugin import Plugin, Scheduled
from regplug.testing.bench import Setup
from regplug.testing.checks.arguments import odd_numbers
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

_ACTING = ("on_loss", "on_gradients", "before_step", "after_step")


@check("strength", after=("arguments", "gradient", "where", "every-batch", "adds", "reproducible"))
def strength(subject: Subject) -> Iterable[Case]:
    """Each strength is what it is set to: by the constructor, before attach, and between steps.

    A penalty is linear in it: 2λ and λ·0.3712 bring 2 and 0.3712 times the gradient. For other
    plugins another number makes another run, in which what is set is what counts. What says
    ``by_pattern = True`` does to each weight what its own strength says.
    """
    for attribute in subject.scheduled.values():
        for setup in subject.setups():
            regime = f"{attribute.name}, {setup.regime}"
            is_penalty = isinstance(subject.plugin, Delivered) and attribute.name == "strength"
            if is_penalty and setup.delivery in ("step", "loss"):
                yield f"{regime}, linear", partial(_linear, subject, setup)
            yield f"{regime}, set", partial(_set, subject, setup, attribute)
            yield f"{regime}, set later", partial(_set_later, subject, setup, attribute)
            if _is_for_parts(subject, attribute):
                yield f"{regime}, by pattern", partial(_by_pattern, subject, setup, attribute)


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
    one = acting(subject, setup, attribute.name, first)
    other = moments(subject.rig(setup.but(**{attribute.name: second})))
    if all(alike(a, b) for a, b in zip(one, other, strict=True)):
        raise Failure(
            f"with {attribute.name} = {first:g} it does to the bit what it does with {second:g}: "
            + READ.format(name=attribute.name)
        )
    # What else a proximal operator does than its strength says is the question of that check.
    asked = attribute.off == 0 and setup.regime != "proximal"
    if asked and _hardly_differ(one, other, moments(subject.rig(None))):
        raise Failure(
            f"with {attribute.name} = {first:g} it does what it does with {second:g}, but for a "
            "thousandth: what is divided by its own size, as the step of Adam is, has lost its "
            "strength; bring λ in afterwards"
        )
    # A rate by which something is drawn at random moves a draw now and then only.
    by_chance = subject.plugin.stochastic and attribute.high <= 1
    if attribute.off == 0 and not (by_chance or _is_share(attribute, one, other)):
        little = moments(subject.rig(setup.but(**{attribute.name: first * 1.00001})))
        if all(alike(a, b) for a, b in zip(one, little, strict=True)):
            raise Failure(
                f"with {attribute.name} = {first:.8g} and {first * 1.00001:.8g} it does the "
                "same, to the bit: round it nowhere"
            )
    recipe = subject.recipe
    for argument in recipe.parameters:
        if attribute.name in (argument, scheduled_name(argument)):
            made = recipe.but(**{argument: first})
            if attribute.at(made(), 0) != first:
                continue  # reached later, as another argument says: see arguments
            values = {k: v for k, v in setup.values.items() if k != attribute.name}
            built = moments(subject.rig(Setup(made, setup.delivery, values)))
            if not all(alike(a, b) for a, b in zip(one, built, strict=True)):
                raise Failure(
                    f"made with {argument}={first:g} it acts otherwise than with "
                    f"{attribute.name} = {first:g} set afterwards: "
                    + READ.format(name=attribute.name)
                )


def _is_share(attribute: Scheduled, one: list[Moment], other: list[Moment]) -> bool:
    """Tell whether it is a share of a number of weights, those set to 0: it comes in steps."""
    zeros = [
        [int((w == 0).sum()) for _, weights in found for w in weights.values()]
        for found in (one, other)
    ]
    return attribute.high == 1 and zeros[0] != zeros[1]


def _hardly_differ(one: list[Moment], other: list[Moment], plain: list[Moment]) -> bool:
    """Tell whether half of a strength makes hardly any difference to what it does to weights."""
    largest = apart = 0.0
    for (numbers, weights), (numbers_2, weights_2), (_, without) in zip(
        one, other, plain, strict=True
    ):
        if numbers != numbers_2:
            return False
        for name, w in weights.items():
            if w.numel():
                largest = max(largest, float((w - without[name]).abs().max()))
                apart = max(apart, float((w - weights_2[name]).abs().max()))
    return apart < 1e-3 * largest


def _set_later(subject: Subject, setup: Setup, attribute: Scheduled) -> None:
    first, second = odd_numbers(subject, attribute)
    constant = acting(subject, setup, attribute.name, first)
    rig = subject.rig(setup.but(**{attribute.name: first})).move()
    found = []
    for step in range(len(constant)):
        if step == CHANGE:
            setattr(rig.plugin, attribute.name, second)
        found.append(moment(rig, step))
    if all(alike(a, b) for a, b in zip(constant, found, strict=True)):
        raise Failure(
            f"{attribute.name} set from {first:g} to {second:g} between two steps changes nothing: "
            + READ.format(name=attribute.name)
        )


def _is_for_parts(subject: Subject, attribute: Scheduled) -> bool:
    """Tell whether it says that it takes patterns, and nothing that it is told already is one."""
    adapts = isinstance(subject.plugin, Adaptive) and attribute.name in subject.plugin.adapts
    return _says_by_pattern(subject.plugin) and not adapts and not subject.plugin.mappings


def _says_by_pattern(plugin: Plugin) -> bool:
    """Tell whether the class says it for the hooks that it has: not for those of a subclass."""
    if not (isinstance(plugin, Selective) and plugin.by_pattern):
        return False
    for cls in type(plugin).__mro__:
        if "by_pattern" in vars(cls):
            return True
        if any(is_hook(vars(cls).get(hook)) for hook in _ACTING):
            return False
    return False


def _by_pattern(subject: Subject, setup: Setup, attribute: Scheduled) -> None:
    one, *others = subject.touched(setup)
    if not others:
        raise Skip("it acts on one weight here")
    first, second = odd_numbers(subject, attribute)

    def left(value: object, where: str | None = None) -> dict[str, torch.Tensor]:
        made = setup.but(**{attribute.name: value})
        rig = subject.rig(made if where is None else made.but(where=where)).move()
        return rig.run(1).weights

    alike, unlike = left(first), left(second)
    if not torch.allclose(left(first, one)[one], alike[one], rtol=1e-9, atol=1e-12):
        raise Skip("what it does to one weight depends on the others")
    try:
        found = left({one: first, "*": second})
    except RegplugError as error:
        raise Failure(f"it says by_pattern = True, and then refuses a mapping: {error}") from error
    for name, w in found.items():
        number, expected = (first, alike) if name == one else (second, unlike)
        if not torch.allclose(w, expected[name], rtol=1e-7, atol=1e-10):
            raise Failure(
                f"with {attribute.name} = {{{one!r}: {first:g}, '*': {second:g}}} it does not do to"
                f" {name} what it does with {number:g}: go through by_part(session), and read "
                f"self.{attribute.name} within that loop; or say by_pattern = False"
            )
