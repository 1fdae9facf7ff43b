"""Whether a schedule goes by the session's steps, and by no count of the plugin's own."""

import copy
from collections.abc import Callable

import torch

from regplug import schedules
from regplug.errors import RegplugError
from regplug.plugin import Scheduled
from regplug.testing.bench import Setup, Snapshot, difference
from regplug.testing.checks.arguments import odd_numbers
from regplug.testing.subject import Failure, Skip, Subject

__all__ = ["passes", "resumed"]

_Two = Callable[[Subject, Setup], tuple[Snapshot, Snapshot]]


def passes(subject: Subject, setup: Setup, attribute: Scheduled) -> None:
    """Compare a loop with several passes for each step with one that has a single pass."""
    if subject.plugin.stochastic:
        raise Skip("it draws at random in each pass")
    _alike(
        _passes,
        subject,
        setup,
        attribute,
        f"with two backward passes for each step, and a look at the loss before them, it does not "
        f"follow a schedule of {attribute.name} as with one: go by session.steps, and by no count "
        "of your own",
    )


def resumed(subject: Subject, setup: Setup, attribute: Scheduled) -> None:
    """Compare a run that goes on from a saved state with one that was not interrupted."""
    _alike(
        _resumed,
        subject,
        setup,
        attribute,
        f"a resumed run does not go on with a schedule of {attribute.name} where it was: go by "
        "session.steps, which the session saves",
    )


def _alike(two: _Two, subject: Subject, setup: Setup, attribute: Scheduled, words: str) -> None:
    first, second = odd_numbers(subject, attribute)
    going = schedules.linear(first, second, steps=8)
    if (gap := difference(*two(subject, setup.but(**{attribute.name: going})))) is None:
        return
    if difference(*two(subject, setup.but(**{attribute.name: first}))) is not None:
        raise Skip("with a constant it does not come to the same either")
    raise Failure(f"{words}: {gap}")


def _passes(subject: Subject, setup: Setup) -> tuple[Snapshot, Snapshot]:
    several, single = subject.rig(setup).move(), subject.rig(setup).move()
    for step in range(3):
        several.optimizer.zero_grad()
        with torch.no_grad():
            several.loss(several.data(step))
        for _ in range(2):
            (several.loss(several.data(step)) / 2).backward()
        several.optimizer.step()
        single.step(step)
    return several.snapshot(), single.snapshot()


def _resumed(subject: Subject, setup: Setup) -> tuple[Snapshot, Snapshot]:
    straight = subject.rig(setup)
    straight.run(3)
    assert straight.session is not None
    again = subject.rig(setup)
    again.optimizer.load_state_dict(copy.deepcopy(straight.optimizer.state_dict()))
    assert again.session is not None
    try:
        again.session.load_state_dict(copy.deepcopy(straight.session.state_dict()))
    except RegplugError as error:
        raise Skip("its state does not come back: see state") from error
    with torch.no_grad():
        for name, p in again.parameters.items():
            p.copy_(straight.parameters[name])
    random = torch.get_rng_state()
    for rig in (straight, again):
        torch.set_rng_state(random)
        for step in range(3, 6):
            rig.step(step)
    return again.snapshot(), straight.snapshot()
