"""Checks of what a plugin remembers: saved, and resumed."""

import copy
import io
import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch

import regplug
from regplug.errors import SpecError
from regplug.plugin import Plugin
from regplug.testing.bench import Setup
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject, same

__all__: list[str] = []


@check("state")
def state(subject: Subject) -> Iterable[Case]:
    """Its state is made of plain types, goes by its name, and comes back as it was."""
    setup = subject.given(subject.deliveries[0])

    def round_trip() -> None:
        rig = subject.rig(setup)
        rig.run(2)
        assert rig.session is not None
        saved = rig.session.state_dict()
        loaded = _through_file(saved)
        fresh = subject.rig(setup)
        assert fresh.session is not None
        streams = [read() for read in _STREAMS]
        fresh.session.load_state_dict(loaded)
        if [read() for read in _STREAMS] != streams:
            raise Failure(
                "loading its state sets random numbers that are the user's, torch's or Python's: "
                "draw from a torch.Generator of the plugin's own, and save its get_state()"
            )
        if (gap := _unlike(fresh.session.state_dict(), saved)) is not None:
            raise Failure(f"after saving and loading, {gap}")

    def by_name() -> None:
        twins = [_named(setup, "first"), _named(setup, "second")]
        rig = subject.rig(None)
        try:
            session = regplug.attach(rig.model, rig.optimizer, twins)
        except SpecError as error:
            raise Skip(f"two of them can't be attached together: {error}") from error
        if [twin.name for twin in twins] != ["first", "second"]:
            raise Failure("its name can't be set, so that two of them have states of one name")
        try:
            for step in range(2):
                rig.optimizer.zero_grad()
                session.loss(rig.criterion(rig.data(step))).backward()
                rig.optimizer.step()
        except RuntimeError as error:
            raise Skip(f"two of them can't train one model together: {error}") from error
        saved = copy.deepcopy(session.state_dict())
        other = subject.rig(None)
        turned = [_named(setup, "second"), _named(setup, "first")]
        again = regplug.attach(other.model, other.optimizer, turned)
        again.load_state_dict(saved)
        if (gap := _unlike(again.state_dict(), saved)) is not None:
            raise Failure(f"loaded into plugins attached in another order, {gap}")
        again.detach()
        session.detach()

    yield "round trip", round_trip
    yield "by name", by_name


_STREAMS: tuple[Callable[[], Any], ...] = (
    lambda: torch.get_rng_state().tolist(),
    random.getstate,
)


def _named(setup: Setup, name: str) -> Plugin:
    return setup.but(name=name).make()


def _through_file(saved: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    try:
        loaded: dict[str, Any] = torch.load(file, weights_only=True)
    except Exception as error:
        raise Failure(
            "torch.load(weights_only=True) does not read its state, which may hold numbers, "
            f"strings, tensors, and lists and dicts of them: {error}"
        ) from error
    return loaded


def _unlike(found: Any, expected: Any, path: str = "state") -> str | None:
    if isinstance(expected, torch.Tensor):
        equal = isinstance(found, torch.Tensor) and torch.equal(found, expected)
        return None if equal else f"{path} is another tensor"
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping) or set(found) != set(expected):
            return f"{path} has other keys"
        pairs = [(f"{path}[{key!r}]", found[key], expected[key]) for key in expected]
    elif isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            return f"{path} has another length"
        pairs = [
            (f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(found, expected, strict=True))
        ]
    else:
        return None if found == expected else f"{path} is {found!r} instead of {expected!r}"
    return next((gap for p, a, b in pairs if (gap := _unlike(a, b, p)) is not None), None)


@check("resume", after=("every-batch", "state"))
def resume(subject: Subject) -> Iterable[Case]:
    """A run that is interrupted and resumed ends in the same bits as one that is not."""

    def run(setup: Setup) -> None:
        options = {"calm": False, "momentum": 0.9}
        straight = subject.rig(setup, **options)
        straight.run(3)
        assert straight.session is not None
        saved = copy.deepcopy(
            {
                "model": straight.model.state_dict(),
                "optimizer": straight.optimizer.state_dict(),
                "session": straight.session.state_dict(),
            }
        )
        numbers = torch.get_rng_state()
        for step in range(3, 6):
            straight.step(step)

        resumed = subject.rig(setup, **options, edit=_disturb)
        assert resumed.session is not None
        resumed.model.load_state_dict(saved["model"])
        resumed.optimizer.load_state_dict(saved["optimizer"])
        resumed.session.load_state_dict(saved["session"])
        torch.set_rng_state(numbers)
        for step in range(3, 6):
            resumed.step(step)
        if resumed.session.steps != 6:
            raise Failure(f"after 3 + 3 steps the session counts {resumed.session.steps}")
        same(
            resumed.snapshot(),
            straight.snapshot(),
            "a resumed run ends otherwise than one that was not interrupted; what the plugin "
            "remembers belongs into on_state and on_load_state",
            rtol=0,
            atol=0,
        )

    for delivery in subject.deliveries:
        setup = subject.given(delivery)
        yield setup.regime, partial(run, setup)


def _disturb(model: torch.nn.Module) -> None:
    """Start from other weights, as a new process does before it loads the old ones."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
