"""Checks of which weights and gradients a plugin touches, and which it leaves alone."""

from collections.abc import Iterable
from functools import partial

import torch

from regplug.bases.delivered import Delivered
from regplug.bases.joint import JointPenalty
from regplug.errors import SelectionError
from regplug.testing.bench import Rig, Sample, Setup
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject, same

__all__: list[str] = []


@check("untouched", after=("where",))
def untouched(subject: Subject) -> Iterable[Case]:
    """Frozen, gradientless, foreign and unselected weights stay; a tied weight counts once.

    Gradients are there after a step, as without it: a loop may look at them, or accumulate more.
    """
    for setup in subject.setups():
        yield f"frozen, {setup.regime}", partial(_frozen, subject, setup)
        yield f"no gradient, {setup.regime}", partial(_gradientless, subject, setup)
        yield f"another optimizer's, {setup.regime}", partial(_foreign, subject, setup)
        if isinstance(subject.plugin, Delivered):
            yield f"unselected, {setup.regime}", partial(_unselected, subject, setup)
        yield f"tied, {setup.regime}", partial(_tied, subject, setup)
        yield f"gradients, {setup.regime}", partial(_gradients, subject, setup)


def _attached(subject: Subject, setup: Setup, **options: object) -> Rig:
    try:
        return subject.rig(setup, **options)
    except SelectionError as error:
        raise Skip("without that weight there is nothing for it to act on") from error


def _stays(rig: Rig, name: str, why: str, before: torch.Tensor) -> None:
    if not torch.equal(rig.parameters[name], before):
        raise Failure(f"it changed {name}, which {why}")


def _frozen(subject: Subject, setup: Setup) -> None:
    name = subject.touched(setup)[0]
    rig = _attached(subject, setup, edit=lambda m: m.get_parameter(name).requires_grad_(False))
    before = rig.parameters[name].clone()
    rig.run(2)
    _stays(rig, name, "is frozen", before)
    if rig.parameters[name].grad is not None:
        raise Failure(f"it gave a gradient to {name}, which is frozen")


def _gradientless(subject: Subject, setup: Setup) -> None:
    name = subject.touched(setup)[0]
    rig = _attached(subject, setup)
    before = rig.parameters[name].detach().clone()
    for step in range(2):
        rig.backward(step)
        rig.parameters[name].grad = None
        rig.optimizer.step()
    _stays(rig, name, "has no gradient and so took no part in the step", before)


def _foreign(subject: Subject, setup: Setup) -> None:
    name = subject.touched(setup)[0]
    rig = _attached(subject, setup, owned=lambda other: other != name)
    plain = subject.rig(None, owned=lambda other: other != name)
    before = rig.parameters[name].detach().clone()
    for each in (rig, plain):
        each.step(0)
    _stays(rig, name, "is not this optimizer's", before)
    if subject.adds_to_loss or subject.plugin.shapes_loss:
        return  # what backward makes of its term is the loss's business
    found, expected = rig.parameters[name].grad, plain.parameters[name].grad
    if (found is None) != (expected is None) or (
        found is not None and expected is not None and not torch.allclose(found, expected)
    ):
        raise Failure(f"it changed the gradient of {name}, which is not this optimizer's")


def _unselected(subject: Subject, setup: Setup) -> None:
    name = subject.touched(setup)[0]
    found, plain = subject.rig(subject.only(setup, name)).run(1), subject.rig(None).run(1)
    for other, weight in plain.weights.items():
        if other != name and not torch.equal(weight, found.weights[other]):
            raise Failure(f"it changed {other}, although where={name!r}")
    if torch.equal(found.weights[name], plain.weights[name]):
        raise Failure(f"it left {name} alone, although where={name!r} selects it")


def _gradients(subject: Subject, setup: Setup) -> None:
    found, plain = subject.rig(setup), subject.rig(None)
    for rig in (found, plain):
        rig.step(0)
    kept = {name for name, p in found.parameters.items() if p.grad is not None}
    found.detach()
    for name, p in plain.parameters.items():
        if p.grad is not None and name not in kept:
            raise Failure(
                f"after the step {name} has no gradient any more: the loop clears it, and may look "
                "at it before"
            )


def _tied(subject: Subject, setup: Setup) -> None:
    if subject.bench.model is not Sample:
        raise Skip("the model is another than the exam's usual one")
    if isinstance(subject.plugin, JointPenalty):
        raise Skip("a weight of two modules may be in the groups of both")
    if _hooked(subject, setup):
        raise Skip("it watches modules, and one that is called twice is not two modules")
    without = type(subject.bench)(
        partial(Sample, tied=False), subject.bench.batch, subject.bench.loss
    )
    once = Subject(subject.source, without, subject.values)
    same(
        subject.rig(setup).run(3),
        once.rig(setup).run(3),
        "a weight with two names does not count once",
    )


def _hooked(subject: Subject, setup: Setup) -> bool:
    """Tell whether it hooks one of the modules that hold the tied weight."""
    rig, plain = subject.rig(setup), subject.rig(None)
    return any(
        len(hooks) != len(getattr(plain.model.get_submodule(name), kind))
        for name in ("one", "two")
        for kind, hooks in vars(rig.model.get_submodule(name)).items()
        if kind.endswith("_hooks") and isinstance(hooks, dict) and "state_dict" not in kind
    )


@check("adds")
def adds(subject: Subject) -> Iterable[Case]:
    """It adds to ``.grad`` in place: what was there stays in it, and so does the tensor."""
    if not subject.implements("on_gradients"):
        raise Skip("it does not implement on_gradients")
    if subject.deliveries[0] not in (None, "step"):
        raise Skip(f"its delivery is {subject.deliveries[0]!r}, which leaves gradients alone")

    def gradients(setup: Setup, scale: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        rig = subject.rig(setup)
        rig.backward(0, scale)
        held = {name: p.grad for name, p in rig.parameters.items() if p.grad is not None}
        before = [g.clone() for g in held.values()]
        rig.optimizer.step()
        for name, g in held.items():
            if rig.parameters[name].grad is not g:
                raise Failure(
                    f"it replaced the gradient of {name} by another tensor; whoever holds the old "
                    "one (DDP's buckets, hooks) does not see it: add in place"
                )
        return before, list(held.values())

    def run(setup: Setup) -> None:
        before, after = gradients(setup, 1.0)
        # Turned round: what cuts gradients off at a value gives the same at three times the scale.
        more_before, more_after = gradients(setup, -3.0)
        changed = [i for i, g in enumerate(after) if not torch.equal(g, before[i])]
        if not changed:
            raise Skip("it changed no gradient in the first step here")
        for i in changed:
            if torch.equal(after[i], more_after[i]):
                raise Failure("it overwrites the gradient of the data instead of adding to it")
            if isinstance(subject.plugin, Delivered) and not torch.allclose(
                after[i] - before[i], more_after[i] - more_before[i], rtol=1e-6, atol=1e-9
            ):
                raise Failure("what it adds depends on the gradient that was there")

    setup = subject.loud(subject.deliveries[0])
    yield setup.regime, partial(run, setup)


@check("input-grad")
def input_grad(subject: Subject) -> Iterable[Case]:
    """It acts alike whether or not a module's input requires a gradient."""

    def run(setup: Setup) -> None:
        if not subject.bench.data(0).is_floating_point():
            raise Skip("the inputs are whole numbers")
        found = subject.rig(setup)
        for step in range(2):
            found.optimizer.zero_grad()
            found.loss(found.data(step).requires_grad_()).backward()
            found.optimizer.step()
        same(
            subject.rig(setup).run(2),
            found.snapshot(),
            "it acts otherwise where the model's input requires no gradient",
        )

    for setup in subject.setups():
        yield setup.regime, partial(run, setup)
