"""Checks of whether a plugin does anything at all, and lets its process live."""

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch

from regplug.errors import PluginError, RegplugError, SelectionError
from regplug.testing.bench import Bench, Rig, Sample, Setup
from regplug.testing.checks.kinds import GROWN
from regplug.testing.registry import RUNS, Case, check
from regplug.testing.subject import Failure, Subject

__all__ = ["choose_bench"]

STEPS = 12
# Of the weights: penalties act anywhere, constraints on large weights or on small ones alone.
SCALES = (1.0, 10.0, 0.1, 1000.0)
# Whether dropout is off, and the scale of the weights.
CIRCUMSTANCES = [(calm, scale) for calm in (True, False) for scale in SCALES]


def choose_bench(subject: Subject) -> None:
    """Let a plugin that needs another kind of layer than the exam's model has sit on one with it.

    Raises:
        RegplugError: it can't be made, or can't be attached to any of the models.
    """
    usual = subject.bench
    if usual.model is Sample and (own := subject.plugin.exam_model) is not None:
        usual = replace(usual, model=own)
    grown = (
        [Bench(kind, usual.batch, usual.loss) for kind in GROWN] if usual.model is Sample else []
    )
    refusal: RegplugError | None = None
    fitting: Bench | None = None
    for bench in (usual, *grown):
        subject.sits_on(bench)
        try:
            rig = subject.rig(subject.given(None))
        except (SelectionError, PluginError) as error:
            refusal = refusal or error
            continue
        with suppress(Exception):  # found by the first check
            rig.detach()
        subject.look_back()
        fitting = fitting or bench
        if _at_once(subject):
            return
    if fitting is None and refusal is not None:
        raise refusal
    subject.sits_on(fitting or usual)


def _at_once(subject: Subject) -> bool:
    """Tell whether it acts in a first step; what goes wrong there is found by the checks."""
    setup = subject.loud(subject.deliveries[0])
    try:
        return any(
            next(_acted(subject, moment, scale, calm=calm))
            for moment in subject.moments(setup)
            for calm, scale in CIRCUMSTANCES
        )
    except Exception:
        return True


@check(RUNS)
def runs(subject: Subject) -> Iterable[Case]:
    """Attached to a plain loop it trains, tells its metrics and detaches, and the process lives.

    It lives, and the step ends, also where the loss is nan.
    """

    def run(setup: Setup) -> None:
        rig = subject.rig(setup)
        torch.set_grad_enabled(True)  # whether it is turned off for good is the next question
        _train(rig)
        assert rig.session is not None
        rig.session.metrics()
        rig.detach()

    for setup in subject.setups():
        yield setup.regime, partial(run, setup)
        yield f"no numbers, {setup.regime}", partial(_lives, subject, setup)


def _lives(subject: Subject, setup: Setup) -> None:
    """A loss that is no number may end in an error, and in weights that are none, but it ends."""
    rig = subject.rig(setup)
    with suppress(Exception):
        for step in range(2):
            rig.backward(step, math.nan)
            rig.optimizer.step()
    with suppress(Exception):
        rig.detach()


# What torch says of faults that come to light in a backward pass, and what each is a sign of.
_SIGNS = {
    "backward through the graph a second time": "it goes on with a term whose graph the backward "
    "pass before has used up; make a new one in each on_loss, and detach() what is kept",
    "modified by an inplace operation": "it changes weights or outputs in place between the "
    "forward and the backward pass (in on_loss, value or gradient); work on new tensors there",
}


def _train(rig: Rig) -> None:
    try:
        rig.run(3)
    except RuntimeError as error:
        for said, sign in _SIGNS.items():
            if said in str(error):
                raise Failure(f"{sign}; torch says: {error}") from error
        raise


@check("acts")
def acts(subject: Subject) -> Iterable[Case]:
    """It is seen to act: with a steady strength from the first step on, and not in secret."""
    for setup in subject.setups():
        yield setup.regime, partial(_seen, subject, setup)
        if subject.implements("on_loss"):
            yield f"no session.loss, {setup.regime}", partial(_told, subject, setup)


def _seen(subject: Subject, setup: Setup) -> None:
    late: str | None = None
    for moment in subject.moments(setup):
        for calm, scale in CIRCUMSTANCES:
            acted = _acted(subject, moment, scale, calm=calm)
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
    if any(_acted(subject, setup, 1.0, grows=True)):  # it measures from what it saw first
        return
    if not _only_reports(subject, setup):
        raise Failure(
            f"never seen to act: in {STEPS} steps it changed no weight, no buffer, no rate of a "
            "module and no loss, with small weights and with large ones"
        )


def _acted(
    subject: Subject,
    setup: Setup,
    scale: float,
    *,
    calm: bool = True,
    event: bool = True,
    grows: bool = False,
    said: list[str] | None = None,
) -> Iterator[bool]:
    """Yield for each step, from the same weights and data, whether it left anything different.

    Args:
        subject: the plugin.
        setup: how it is made.
        scale: of the weights.
        calm: whether dropout is off.
        event: whether the loop calls ``session.loss``.
        grows: whether the weights are larger in each step than before, by less and less: what
            remembers may take its bound from how they grow.
        said: gets what ``describe()`` says in the end.
    """
    with_it, without = subject.rig(setup, calm=calm), subject.rig(None, calm=calm)
    # Not the weights at attach, from which a penalty may measure.
    start = {name: 1.5 * scale * w for name, w in without.snapshot().weights.items()}
    for step in range(STEPS):
        larger = (1 + step) ** 0.25 if grows else 1.0
        found = []
        for rig in (with_it, without):
            with torch.no_grad():
                for name, parameter in rig.parameters.items():
                    parameter.copy_(start[name] * larger)
            torch.manual_seed(2)
            rig.optimizer.zero_grad()
            x = rig.data(0)
            loss = rig.loss(x) if event else rig.criterion(x)
            loss.backward()
            rig.optimizer.step()
            found.append(_state(rig, loss.detach()))
        yield not _alike(*found)
    if said is not None and with_it.session is not None:
        said.append(with_it.session.describe())
    with_it.detach()


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
    said: list[str] = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for scale in SCALES:
            try:
                if any(_acted(subject, setup, scale, event=False, said=said)):
                    return
            except RegplugError:
                return
    if "session.loss" not in "\n".join([*said, *(str(warning.message) for warning in told)]):
        raise Failure(
            "never seen to act where the loop does not call session.loss, and nothing says so: "
            "neither an error, nor a warning, nor describe(); waits_for_loss(session) tells "
            "whether it needs that call"
        )
