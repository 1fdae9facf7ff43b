"""Check that instances and sessions of a plugin have nothing in common."""

from collections.abc import Iterable
from functools import partial
from operator import mul

import torch
from torch import nn

from regplug.bases.delivered import Delivered
from regplug.errors import SpecError
from regplug.testing.bench import Bench, Rig, Sample, Setup, Snapshot, difference
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject, same

__all__: list[str] = []


@check("attach-again", after=("arguments",))
def attach_again(subject: Subject) -> Iterable[Case]:
    """An instance serves one model after another, and two instances two models at a time.

    Attached to a second model it does there what a new one does, and nothing to the first. Two
    that train by turns, with other strengths, end where each ends alone; and two penalties on one
    model add up.
    """
    for setup in subject.setups():
        yield f"one after another, {setup.regime}", partial(_second, subject, setup)
        yield f"one of another size after it, {setup.regime}", partial(_other_size, subject, setup)
        yield f"two at a time, {setup.regime}", partial(_by_turns, subject, setup)
        if isinstance(subject.plugin, Delivered) and setup.delivery in ("step", "loss"):
            yield f"two on one model, {setup.regime}", partial(_together, subject, setup)


def _changed(found: Snapshot, plain: Snapshot) -> bool:
    return found.numbers != plain.numbers or any(
        not torch.equal(w, found.weights[name]) for name, w in plain.weights.items()
    )


def _shrunk(model: nn.Module) -> None:
    """Start from other weights than the model before."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.7)


def _second(subject: Subject, setup: Setup) -> None:
    first = subject.rig(setup)
    first.run(2)
    first.detach()
    assert first.plugin is not None
    left = first.snapshot()
    second = subject.rig(None, edit=_shrunk)
    second.attach(first.plugin)
    torch.manual_seed(1)
    found = second.run(3)
    same(
        first.snapshot(),
        left,
        "attached to a second model, it acts on the first: let on_attach find everything anew, and "
        "on_detach let go of it",
        rtol=0,
        atol=0,
    )
    fresh, plain = (subject.rig(each, edit=_shrunk).run(3) for each in (setup, None))
    if _changed(fresh, plain) and not _changed(found, plain):
        raise Failure(
            "attached to a second model, it does nothing: let on_attach find everything anew"
        )
    if subject.implements("on_state") or subject.plugin.stochastic:
        return  # it may go on from what it remembers
    same(
        found,
        fresh,
        "attached to a second model, it does not what a new one does: what belongs to a session is "
        "made in on_attach, not in __init__",
        rtol=1e-9,
        atol=1e-12,
    )


def _other_size(subject: Subject, setup: Setup) -> None:
    """What is kept of the first model's weights does not even fit the second."""
    if subject.bench.model is not Sample:
        raise Skip("the model is another than the exam's usual one")
    if subject.implements("on_state") and not subject.implements("on_attach"):
        raise Skip("it goes on from what it remembers")
    narrow = Bench(partial(Sample, width=5), subject.bench.batch, subject.bench.loss)
    other = Subject(subject.source, narrow, subject.values)
    first = subject.rig(setup)
    first.run(2)
    first.detach()
    assert first.plugin is not None
    second = other.rig(None)
    try:
        second.attach(first.plugin)
        second.run(2)
    except Exception as error:
        try:
            other.rig(setup).run(2)
        except Exception as alone:
            raise Skip(f"a new one fails there too: {alone}") from error
        raise Failure(
            f"attached to a second model, of other sizes, it fails: {error}; let on_attach find "
            "everything anew, and on_detach let go of it"
        ) from error


def _by_turns(subject: Subject, setup: Setup) -> None:
    others = {}
    mapped = subject.plugin.mappings
    # Strengths by pattern are halved one by one.
    halved = subject.by_pattern(subject.steady(), lambda value: value / 2) if mapped else {}
    for name, attribute in subject.scheduled.items():
        half = halved[name] if name in mapped else max(setup.values[name] / 2, attribute.low)
        others[name] = half
    # With weights of its own each, from which it may measure.
    setups = [(setup, None), (setup.but(**others), _shrunk)]
    alone = [subject.rig(each, edit=edit).run(3) for each, edit in setups]
    once_more = subject.rig(setup).run(3)
    if difference(once_more, alone[0], rtol=0, atol=0) is not None:
        raise Skip("alone it is not the same twice either")
    try:
        rigs = [_Turn(subject.rig(each, edit=edit)) for each, edit in setups]
        for step in range(3):
            for turn in rigs:
                turn.step(step)
    except Exception as error:
        raise Failure(
            f"two instances on two models at a time: {type(error).__name__}: {error}"
        ) from error
    for turn, expected in zip(rigs, alone, strict=True):
        same(
            turn.rig.snapshot(),
            expected,
            "two instances on two models disturb each other: keep what changes on self, not on the "
            "class, in a module or in a default argument",
            rtol=0 if not subject.plugin.stochastic else 1e-6,
            atol=0 if not subject.plugin.stochastic else 1e-6,
        )


def _together(subject: Subject, setup: Setup) -> None:
    """What two bring to a gradient is the sum of what each brings."""
    strengths = [subject.changed(setup, partial(mul, f)).values for f in (1.0, 0.6)]
    one, other = (
        setup.but(**values, name=name)
        for name, values in zip(("first", "second"), strengths, strict=True)
    )
    second = other.make()
    if second.name != "second":
        raise Skip("its name can't be set")
    try:
        both = subject.rig(one, others=(second,))
    except SpecError as error:
        raise Skip(f"two of them can't be attached together: {error}") from error
    found, plain = both.move().pulls(0), subject.rig(None).move().pulls(0)
    alone = [subject.rig(each).move().pulls(0) for each in (one, other)]
    for name, pull in found.items():
        expected = alone[0][name] + alone[1][name] - plain[name]
        if not torch.allclose(pull, expected, rtol=1e-6, atol=1e-9):
            raise Failure(
                f"two on one model bring to the gradient of {name} what is not the sum of what each"
                " brings: they must know nothing of each other"
            )


class _Turn:
    """A rig with a stream of random numbers of its own."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self._random = rig, torch.get_rng_state()

    def step(self, step: int) -> None:
        torch.set_rng_state(self._random)
        self.rig.step(step)
        self._random = torch.get_rng_state()
