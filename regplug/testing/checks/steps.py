"""Checks of real steps: accumulation, clipping, loss scaling, steps that are none."""

from collections.abc import Iterable
from functools import partial

import torch

from regplug.testing.bench import Setup
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject, same

__all__: list[str] = []


def _draws_alike(subject: Subject) -> None:
    """Skip what draws from the user's stream in each forward pass: a plugin that shapes the loss.

    Dropout, which does that too, is kept from it by the bench.
    """
    if subject.plugin.stochastic and subject.plugin.shapes_loss:
        raise Skip("it draws in each forward pass, and the loops to compare draw otherwise")


@check("accumulation")
def accumulation(subject: Subject) -> Iterable[Case]:
    """It acts once per real step however many backward passes lead to it, in a ragged tail too.

    The micro-batches of a step hold the same samples, so that one pass with the loss of all of
    them is what they come to, whatever the plugin adds to the loss.
    """
    _draws_alike(subject)
    every, sizes = 3, (3, 3, 1)

    def run(setup: Setup) -> None:
        found, expected = subject.rig(setup), subject.rig(setup)
        for step, size in enumerate(sizes):
            found.optimizer.zero_grad()
            for _ in range(size):
                (found.loss(found.data(step)) / every).backward()
            found.optimizer.step()
            expected.optimizer.zero_grad()
            (expected.loss(expected.data(step)) * (size / every)).backward()
            expected.optimizer.step()
        assert found.session is not None
        if found.session.steps != len(sizes):
            raise Failure(f"{len(sizes)} steps were counted as {found.session.steps}")
        same(
            found.snapshot(),
            expected.snapshot(),
            f"with {every} backward passes per step and 1 in the last it acts otherwise than with "
            "one",
        )

    for setup in subject.setups():
        yield setup.regime, partial(run, setup)


@check("clipping", after=("strength",))
def clipping(subject: Subject) -> Iterable[Case]:
    """Outside the loss it acts in full after clipping; inside it adds nothing after clipping."""
    _draws_alike(subject)
    for setup in subject.setups():
        in_loss = setup.delivery == "loss" or subject.adds_to_loss
        yield setup.regime, partial(_clipped_with_loss if in_loss else _full, subject, setup)


def _full(subject: Subject, setup: Setup, steep: float = 1000.0) -> None:
    found, expected = subject.rig(setup), subject.rig(setup)
    for step in range(2):
        found.backward(step, steep)
        torch.nn.utils.clip_grad_norm_(found.model.parameters(), 1.0)
        found.optimizer.step()
        # Here the loss is that much smaller from the start, and nothing is left to clip.
        parameters = [p for p in expected.parameters.values() if p.requires_grad]
        gradients = torch.autograd.grad(
            expected.criterion(expected.data(step)) * steep, parameters, allow_unused=True
        )
        norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
        expected.backward(step, steep * float((1.0 / (norm + 1e-6)).clamp(max=1.0)))
        expected.optimizer.step()
    same(
        found.snapshot(),
        expected.snapshot(),
        "it is clipped with the gradient of the data, and does not act in full",
        rtol=1e-6,
    )


def _clipped_with_loss(subject: Subject, setup: Setup) -> None:
    rig = subject.rig(setup)
    for step in range(2):
        rig.backward(step, 1000.0)
        torch.nn.utils.clip_grad_norm_(rig.model.parameters(), 1.0)
        clipped = {name: p.grad.clone() for name, p in rig.parameters.items() if p.grad is not None}
        rig.optimizer.step()
        for name, before in clipped.items():
            after = rig.parameters[name].grad
            if not subject.adds_to_loss and (after is None or not torch.equal(before, after)):
                raise Failure(f"delivered in the loss, it adds to the gradient of {name} again")


@check("overflow", after=("gradient",))
def overflow(subject: Subject) -> Iterable[Case]:
    """Under a ``GradScaler`` it acts unscaled, and not at all in a step that overflowed."""
    _draws_alike(subject)

    def run(setup: Setup, fused: bool) -> None:
        options = {"dtype": torch.float32, "fused": fused}
        found, expected = subject.rig(setup, **options), subject.rig(setup, dtype=torch.float32)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        for step, overflows in enumerate((False, True, False)):
            before = found.snapshot()
            found.optimizer.zero_grad()
            scaler.scale(found.loss(found.data(step))).backward()
            if overflows:
                next(p.grad for p in found.parameters.values() if p.grad is not None).fill_(
                    float("inf")
                )
            scaler.step(found.optimizer)
            scaler.update()
            if overflows:
                same(found.snapshot(), before, "it acted in a skipped step", rtol=0, atol=0)
            else:
                expected.step(step)
        assert found.session is not None
        if found.session.steps != 2:
            raise Failure(f"2 real steps and a skipped one were counted as {found.session.steps}")
        same(
            found.snapshot(),
            expected.snapshot(),
            "it acts otherwise under a GradScaler",
            rtol=1e-4,
            atol=2e-6,
        )

    for setup in subject.setups():
        for fused in (False, True):
            regime = f"{setup.regime}, {'fused' if fused else 'not fused'}"
            yield regime, partial(run, setup, fused)


@check("checkpoint-step")
def checkpoint_step(subject: Subject) -> Iterable[Case]:
    """The dummy step by which distributed checkpoints make optimizer state is no step."""
    _draws_alike(subject)
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    def run(setup: Setup) -> None:
        rig = subject.rig(setup, momentum=0.9)
        before = rig.snapshot()
        get_optimizer_state_dict(rig.model, rig.optimizer)
        same(rig.snapshot(), before, "saving a checkpoint changed the weights", rtol=0, atol=0)
        assert rig.session is not None
        if rig.session.steps:
            raise Failure("saving a checkpoint was counted as a step")
        expected = subject.rig(setup, momentum=0.9).run(2)
        same(rig.run(2), expected, "after saving a checkpoint it acts otherwise")

    for setup in subject.setups():
        yield setup.regime, partial(run, setup)
