"""Checks of what happens between steps: validation, modes, and weights that come late."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from regplug.errors import SelectionError
from regplug.hookspecs import hookimpl
from regplug.plugin import Plugin
from regplug.testing.bench import Setup
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject, same
from regplug.view import SessionView

__all__: list[str] = []

_TRAINING = "what draws at random does so while module.training is set, and not in evaluation"
_BASICS = ("every-batch", "adds", "finite-difference", "gradient", "reproducible")


@check("late-weights", after=(*_BASICS, "untouched", "groups", "restore"))
def late_weights(subject: Subject) -> Iterable[Case]:
    """A weight that is unfrozen on the way, or comes in a group of its own, is acted upon then."""
    for setup in subject.setups():
        yield f"unfrozen, {setup.regime}", partial(_late, subject, setup, "unfrozen")
        yield f"added, {setup.regime}", partial(_late, subject, setup, "added to the optimizer")


def _late(subject: Subject, setup: Setup, how: str) -> None:
    if subject.implements("on_state"):
        raise Skip("it remembers, and may keep to what it has known from the start")
    touched = subject.touched(setup)
    if len(touched) < 2:
        raise Skip("without that weight there is nothing for it to act on")
    name = touched[-1]
    unfrozen = how == "unfrozen"
    options: dict[str, Any] = {"owned": None if unfrozen else (lambda other: other != name)}
    if unfrozen:
        options["edit"] = lambda model: model.get_parameter(name).requires_grad_(False)
    try:
        late, plain = subject.rig(setup, **options), subject.rig(None)
    except SelectionError as error:
        raise Skip("without that weight there is nothing for it to act on") from error
    start = plain.snapshot().weights
    late.step(0)
    if unfrozen:
        late.parameters[name].requires_grad_()
    else:
        late.optimizer.add_param_group({"params": [late.parameters[name]]})
    fresh = subject.rig(setup)
    for rig in (late, fresh, plain):
        with torch.no_grad():
            for other, p in rig.parameters.items():
                p.copy_(start[other])
        torch.manual_seed(2)
        rig.step(0)
    found, expected = late.parameters[name], fresh.parameters[name]
    if torch.equal(expected, plain.parameters[name]):
        raise Skip(f"it does nothing to {name} here")
    message = (
        f"once {name} is {how}, after a step without it, "
        "{}: let it find its weights in each step, by session.updates or session.coverage, not "
        "in on_attach alone"
    )
    if torch.equal(found, plain.parameters[name]):
        raise Failure(message.format("it leaves that weight alone"))
    if subject.plugin.stochastic:
        return
    if not torch.allclose(found, expected, rtol=1e-6, atol=1e-9):
        raise Failure(message.format("it does not do to it what it does from the start"))


@check("interludes", after=(*_BASICS, "accumulation"))
def interludes(subject: Subject) -> Iterable[Case]:
    """What is no training makes no difference to it.

    Validation between steps (in ``eval()`` and under ``no_grad`` or ``inference_mode``, with the
    loss event and without) changes no bit, and gradients that are zeroed instead of cleared, and a
    step under ``no_grad``, change nothing. An evaluation says the same when it is made again, and
    draws no random number.
    """
    for setup in subject.setups():
        yield f"evaluation, {setup.regime}", partial(_evaluated, subject, setup)
        for how in ("no_grad", "inference_mode"):
            yield f"validation, {how}, {setup.regime}", partial(_validated, subject, setup, how)
        yield f"zeroed gradients, {setup.regime}", partial(_zeroed, subject, setup)


def _evaluated(subject: Subject, setup: Setup) -> None:
    found, plain = subject.rig(setup, calm=False), subject.rig(None, calm=False)
    said = []
    for rig in (found, plain):
        rig.step(0)
        rig.model.eval()
        torch.manual_seed(8)
        with torch.no_grad():
            losses = [rig.criterion(rig.data(1)) for _ in range(2)]
        said.append((not torch.equal(*losses), torch.rand(()).item()))
        rig.detach()
    (varies, drawn), (varies_too, usual) = said
    if varies and not varies_too:
        raise Failure(f"in eval() the model says something else each time: {_TRAINING}")
    if drawn != usual and not varies_too:
        raise Failure(f"in eval() it draws from torch's random numbers: {_TRAINING}")


def _validated(subject: Subject, setup: Setup, how: str) -> None:
    found = subject.rig(setup, calm=False)
    for step in range(4):
        found.step(step)
        random = torch.get_rng_state()
        found.model.eval()
        with getattr(torch, how)():
            loss = found.criterion(found.data(9))
            if step % 2:
                assert found.session is not None
                found.session.loss(loss)
        found.model.train()
        torch.set_rng_state(random)
    same(
        found.snapshot(),
        subject.rig(setup, calm=False).run(4),
        f"a validation under {how} between steps makes a difference to the training: count steps "
        "by session.steps, and leave alone what the model does in eval()",
        rtol=0,
        atol=0,
    )


def _zeroed(subject: Subject, setup: Setup) -> None:
    found = subject.rig(setup)
    for step in range(3):
        found.optimizer.zero_grad(set_to_none=False)
        found.loss(found.data(step)).backward()
        with torch.no_grad():
            found.optimizer.step()
    same(
        found.snapshot(),
        subject.rig(setup).run(3),
        "where gradients are zeroed in place instead of cleared, it acts otherwise",
        rtol=1e-9,
        atol=1e-12,
    )


@check("modes", after=("surroundings",))
def modes(subject: Subject) -> Iterable[Case]:
    """A step leaves the modes of all modules, and gradient mode, as they are.

    Also within a step, for the plugins that are called after it.
    """
    for setup in subject.setups():
        yield setup.regime, partial(_modes, subject, setup)
        yield f"within a step, {setup.regime}", partial(_within, subject, setup)


class _Watch(Plugin):
    """Sees with what gradient mode it is called."""

    changes_weights = False
    reads_gradients = False

    def __init__(self) -> None:
        self.seen: list[tuple[str, bool]] = []

    def _see(self, event: str) -> None:
        self.seen.append((event, torch.is_grad_enabled()))

    @hookimpl
    def on_loss(self, session: SessionView) -> None:
        self._see("on_loss")

    @hookimpl
    def on_gradients(self, session: SessionView) -> None:
        self._see("on_gradients")

    @hookimpl
    def before_step(self, session: SessionView) -> None:
        self._see("before_step")

    @hookimpl
    def after_step(self, session: SessionView) -> None:
        self._see("after_step")


def _within(subject: Subject, setup: Setup) -> None:
    watch, alone = _Watch(), _Watch()
    subject.rig(setup, others=(watch,)).run(2)
    plain = subject.rig(None)
    plain.attach(alone)
    plain.run(2)
    expected = dict(alone.seen)
    for event, on in watch.seen:
        if on != expected[event]:
            torch.set_grad_enabled(True)
            raise Failure(
                f"after its {event} gradient mode is {'on' if on else 'off'} for the plugins that "
                "come next: set it for a block only, with torch.enable_grad() or torch.no_grad()"
            )


def _modes(subject: Subject, setup: Setup) -> None:
    rig = subject.rig(setup)
    assert rig.session is not None
    quiet = next(m for m in rig.model.modules() if isinstance(m, nn.LayerNorm | nn.Linear))
    for training in (True, False):
        rig.model.train(training)
        quiet.eval()
        before = {path: m.training for path, m in rig.model.named_modules()}
        for step in range(2):
            rig.step(step)
            for path, module in rig.model.named_modules():
                if module.training != before[path]:
                    raise Failure(
                        f"in a step it turned {path or 'the model'} to "
                        f"{'train' if module.training else 'eval'}(): modes are the user's"
                    )
    if not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        raise Failure("after a step gradient mode is off: torch.no_grad is for a block only")
