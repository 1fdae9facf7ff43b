"""Checks of whether a plugin does anything at all, and lets its process live."""

import warnings
from collections.abc import Iterable, Iterator
from functools import partial

import torch

from regplug.errors import RegplugError
from regplug.testing.bench import Rig, Setup
from regplug.testing.registry import RUNS, Case, check
from regplug.testing.subject import Failure, Subject

__all__: list[str] = []

STEPS = 12
# Of the weights: penalties act anywhere, constraints on large weights or on small ones alone.
SCALES = (1.0, 10.0, 0.1, 1000.0)


@check(RUNS)
def runs(subject: Subject) -> Iterable[Case]:
    """Attached to a plain loop it trains, tells its metrics and detaches, and the process lives."""

    def run(setup: Setup) -> None:
        rig = subject.rig(setup)
        rig.run(3)
        assert rig.session is not None
        rig.session.metrics()
        rig.detach()

    for setup in subject.setups():
        yield setup.regime, partial(run, setup)


@check("acts")
def acts(subject: Subject) -> Iterable[Case]:
    """It is seen to act: with a steady strength from the first step on, and not in secret."""
    for setup in subject.setups():
        yield setup.regime, partial(_seen, subject, setup)
        if subject.implements("on_loss"):
            yield f"no session.loss, {setup.regime}", partial(_told, subject, setup)


def _seen(subject: Subject, setup: Setup) -> None:
    late: str | None = None
    for calm in (True, False):
        for scale in SCALES:
            acted = _acted(subject, setup, scale, calm=calm)
            for step, seen in enumerate(acted):
                if not seen:
                    continue
                if step == 0 or subject.remembers:
                    return
                late = late or (
                    f"never seen to act in {step} steps, only in step {step + 1}, with the same "
                    "weights and data in each: what comes later is a schedule of the strength, and "
                    "a plugin that counts for itself implements on_state"
                )
                break
    if late is not None:
        raise Failure(late)
    if not _only_reports(subject, setup):
        raise Failure(
            f"never seen to act: in {STEPS} steps it changed no weight, no buffer, no rate of a "
            "module and no loss, with small weights and with large ones"
        )


def _acted(subject: Subject, setup: Setup, scale: float, *, calm: bool) -> Iterator[bool]:
    """Yield for each step, from the same weights and data, whether it left anything different."""
    with_it, without = subject.rig(setup, calm=calm), subject.rig(None, calm=calm)
    # Not the weights at attach, from which a penalty may measure.
    start = {name: 1.5 * scale * w for name, w in without.snapshot().weights.items()}
    for _ in range(STEPS):
        found = []
        for rig in (with_it, without):
            with torch.no_grad():
                for name, parameter in rig.parameters.items():
                    parameter.copy_(start[name])
            torch.manual_seed(2)
            found.append(_state(rig, _step(rig)))
        yield not _alike(*found)
    with_it.detach()


def _step(rig: Rig) -> torch.Tensor:
    rig.optimizer.zero_grad()
    loss = rig.loss(rig.data(0))
    loss.backward()
    rig.optimizer.step()
    return loss.detach()


def _state(rig: Rig, loss: torch.Tensor) -> dict[str, object]:
    snapshot = rig.snapshot()
    buffers = {f"buffer {name}": b.clone() for name, b in rig.model.named_buffers()}
    return {**snapshot.weights, **buffers, **snapshot.numbers, "the loss": loss}


def _alike(found: dict[str, object], expected: dict[str, object]) -> bool:
    if found.keys() != expected.keys():
        return False
    for name, value in expected.items():
        other = found[name]
        if isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor):
            # Not equal to itself where a step from large weights went beyond all numbers.
            if not torch.equal(value.nan_to_num(), other.nan_to_num()):
                return False
        elif value != other:
            return False
    return True


def _only_reports(subject: Subject, setup: Setup) -> bool:
    """Tell whether all that it offers is metrics, and it does report some."""
    hooks = ("on_attach", "on_loss", "on_gradients", "before_step", "after_step")
    if any(subject.implements(hook) for hook in hooks) or not subject.implements("on_metrics"):
        return False
    rig = subject.rig(setup)
    rig.step(0)
    assert rig.session is not None
    return bool(rig.session.metrics())


def _told(subject: Subject, setup: Setup) -> None:
    """A loop that never calls ``session.loss`` must be seen to be regularized, or be told."""
    found, plain = subject.rig(setup), subject.rig(None)
    assert found.session is not None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            for step in range(6):
                for rig in (found, plain):
                    rig.optimizer.zero_grad()
                    rig.criterion(rig.data(step)).backward()
                    rig.optimizer.step()
            notes = found.session.describe()
            found.detach()
        except RegplugError:
            return
    if _alike(_state(found, torch.zeros(())), _state(plain, torch.zeros(()))):
        said = "\n".join([notes, *(str(warning.message) for warning in told)])
        if "session.loss" not in said:
            raise Failure(
                "never seen to act where the loop does not call session.loss, and nothing says so: "
                "neither an error, nor a warning, nor describe(); waits_for_loss(session) tells "
                "whether it needs that call"
            )
