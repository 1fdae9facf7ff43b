"""Checks of what a plugin tells: its metrics, and its lines in ``session.describe()``."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from regplug.testing.bench import Rig, Setup
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject, same

__all__: list[str] = []

_WAY_OUT = "on_metrics, describe() and all that they ask only look"


def _state(rig: Rig) -> dict[str, Any]:
    """Return what looking must not change, copied."""
    found: dict[str, Any] = {"the user's stream of random numbers": torch.get_rng_state()}
    found["gradient mode"] = torch.is_grad_enabled()
    for path, module in rig.model.named_modules():
        found[f"the mode of {path or 'the model'}"] = module.training
    for name, p in rig.parameters.items():
        found[name] = p.detach().clone()
        found[f"requires_grad of {name}"] = p.requires_grad
        found[f"the gradient of {name}"] = None if p.grad is None else p.grad.clone()
    return {**found, **rig.snapshot().numbers}


def _unlike(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    for key, value in before.items():
        other = after.get(key)
        if isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor):
            if not torch.equal(value, other):
                return key
        elif value is not other and value != other:
            return key
    return None


def _asked(rig: Rig, what: str) -> Any:
    """Ask for metrics or the description twice, and see that nothing came of it."""
    session = rig.session
    assert session is not None
    before = _state(rig)
    try:
        answers = [getattr(session, what)() for _ in range(2)]
    except Exception as error:
        raise Failure(f"{what}() fails: {error}") from error
    if (changed := _unlike(before, _state(rig))) is not None:
        torch.set_grad_enabled(True)
        raise Failure(f"{what}() changed {changed}: {_WAY_OUT}")
    if repr(answers[0]) != repr(answers[1]):
        raise Failure(f"{what}() says {answers[1]} when asked again, after {answers[0]}")
    return answers[0]


@check("metrics", after=("every-batch", "reproducible", "surroundings"))
def metrics(subject: Subject) -> Iterable[Case]:
    """Metrics are floats, the same when asked twice, at any time; and asking changes no bit."""
    for setup in subject.setups():
        yield f"floats, {setup.regime}", partial(_floats, subject, setup)
        yield f"only looked, {setup.regime}", partial(_only_looked, subject, setup, "metrics")


def _floats(subject: Subject, setup: Setup) -> None:
    rig = subject.rig(setup)
    assert rig.session is not None
    for moment in ("before the first step", "after a step", "in eval()", "after detach()"):
        if moment == "after a step":
            rig.step(0)
        elif moment == "in eval()":
            rig.model.eval()
        elif moment == "after detach()":
            rig.detach()
        for key, value in _asked(rig, "metrics").items():
            if type(value) is not float:
                raise Failure(
                    f"{moment} the metric {key} is {value!r}, of type {type(value).__name__}: "
                    "on_metrics returns floats and 0-d tensors"
                )


def _only_looked(subject: Subject, setup: Setup, what: str) -> None:
    found = subject.rig(setup, calm=False)
    _asked(found, what)
    for step in range(3):
        found.backward(step)
        _asked(found, what)
        found.optimizer.step()
        _asked(found, what)
    same(
        found.snapshot(),
        subject.rig(setup, calm=False).run(3),
        f"where {what}() is asked for in each step the run ends otherwise: {_WAY_OUT}",
        rtol=0,
        atol=0,
    )


@check("describe", after=("every-batch", "reproducible", "metrics"))
def describe(subject: Subject) -> Iterable[Case]:
    """``session.describe()`` names it at any time, says no less than it touches, and only looks."""
    for setup in subject.setups():
        yield f"told, {setup.regime}", partial(_told, subject, setup)
        yield f"only looked, {setup.regime}", partial(_only_looked, subject, setup, "describe")
        yield f"covers, {setup.regime}", partial(_covers, subject, setup)


def _told(subject: Subject, setup: Setup) -> None:
    rig = subject.rig(setup)
    assert rig.plugin is not None
    for moment in ("before the first step", "after a step", "after detach()"):
        if moment == "after a step":
            rig.step(0)
        elif moment == "after detach()":
            rig.detach()
        text = _asked(rig, "describe")
        if rig.plugin.name not in text:
            raise Failure(f"{moment} describe() does not name {rig.plugin.name}: {text}")


def _covers(subject: Subject, setup: Setup) -> None:
    rig = subject.rig(setup)
    assert rig.plugin is not None
    assert rig.session is not None
    covered = rig.plugin.covers(rig.session)
    if covered is None:
        raise Skip("it says that weights are not what it covers")
    if setup.delivery == "loss" or subject.adds_to_loss:
        raise Skip("what it adds to the loss reaches other weights too")
    tensors, weights = covered
    touched = subject.touched(setup)
    sizes = sum(rig.parameters[name].numel() for name in touched)
    if len(touched) > tensors or min(sizes, weights) < sizes:
        raise Failure(
            f"describe() says that it covers {tensors} tensors with {weights} weights, but it "
            f"changed {len(touched)} with {sizes}: {', '.join(touched)}; covers(session) counts "
            "all that it acts on, or returns None"
        )
