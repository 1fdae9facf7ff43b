"""Checks of loops of other kinds: by hand, with ``session.step``, and with closures."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch

import regplug
from regplug.bases.delivered import Delivered
from regplug.plugin import Plugin
from regplug.testing.bench import Rig, Setup
from regplug.testing.checks.refusing import refusals
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject, same

__all__: list[str] = []

LR = 0.02
_BASICS = ("every-batch", "adds", "finite-difference", "gradient", "reproducible")


@check("no-optimizer", after=(*_BASICS, "restore"))
def no_optimizer(subject: Subject) -> Iterable[Case]:
    """In a loop by hand, ``with session.step(lr=…)``, it does what it does with SGD."""

    def run(setup: Setup) -> None:
        rig = subject.rig(None)
        with refusals():
            rig.session = session = regplug.attach(rig.model, None, [setup.make()])
        torch.manual_seed(1)
        for step in range(2):
            rig.model.zero_grad()
            rig.loss(rig.data(step)).backward()
            with refusals(), session.step(lr=LR), torch.no_grad():
                for p in rig.parameters.values():
                    if p.grad is not None:
                        p.sub_(p.grad, alpha=LR)
        same(
            rig.snapshot(),
            subject.rig(setup, lr=LR).run(2),
            "without an optimizer it acts otherwise than with SGD: ask the session (groups, "
            "updates, learning_rate), not session.optimizer, which is None",
        )
        session.metrics()
        session.describe()
        session.detach()

    for setup in subject.setups():
        yield setup.regime, partial(run, setup)


class _Looks(Plugin):
    """Keeps what the weights are in an event."""

    changes_weights = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[tuple[str, list[torch.Tensor]]] = []

    def _look(self, event: str, session: Any) -> None:
        weights = [p.detach().clone() for group in session.groups for p in group["params"]]
        self.seen.append((event, weights))

    @regplug.hookimpl
    def on_gradients(self, session: regplug.Session) -> None:
        self._look("on_gradients", session)

    @regplug.hookimpl
    def before_step(self, session: regplug.Session) -> None:
        self._look("before_step", session)

    @regplug.hookimpl
    def after_step(self, session: regplug.Session) -> None:
        self._look("after_step", session)


@check("closure", after=(*_BASICS, "clipping", "delivery", "checkpoint-step", "restore"))
def closure(subject: Subject) -> Iterable[Case]:
    """With ``optimizer.step(closure)`` it does what it does without, and suits a line search.

    Under LBFGS a penalty at the step finds the minimum that it finds in the loss; a plugin that
    changes weights says so, as it is refused there; one that says ``changes_weights = False``
    leaves them alone, and all leave them alone in ``on_gradients``.
    """
    for setup in subject.setups():
        yield f"SGD, {setup.regime}", partial(_sgd, subject, setup)
        yield f"evaluations, {setup.regime}", partial(_each_evaluation, subject, setup)
        yield f"weights, {setup.regime}", partial(_leaves_weights, subject, setup)
        yield f"LBFGS, {setup.regime}", partial(_lbfgs, subject, setup)


def _sgd(subject: Subject, setup: Setup) -> None:
    found = subject.rig(setup)
    for step in range(2):

        def evaluate(step: int = step) -> torch.Tensor:
            found.optimizer.zero_grad()
            loss = found.loss(found.data(step))
            loss.backward()
            return loss

        found.optimizer.step(evaluate)
    same(found.snapshot(), subject.rig(setup).run(2), "with a closure it acts otherwise")


class _Twice(torch.optim.Optimizer):
    """Evaluates its closure twice from the same weights, as a line search may."""

    def __init__(self, params: Iterable[torch.Tensor]) -> None:
        super().__init__(params, {"lr": 0.02})
        self.seen: list[list[torch.Tensor]] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], float]) -> None:  # type: ignore[override]
        """Keep the gradients of both evaluations, and go by the second."""
        params = [p for group in self.param_groups for p in group["params"]]
        before = [p.clone() for p in params]
        for _ in range(2):
            for p, start in zip(params, before, strict=True):
                p.copy_(start)  # before_step came after the first evaluation
            with torch.enable_grad():
                closure()
            found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in params]
            self.seen.append(found)
        for p, gradient in zip(params, found, strict=True):
            p.add_(gradient, alpha=-self.param_groups[0]["lr"])


def _each_evaluation(subject: Subject, setup: Setup) -> None:
    rig = subject.rig(None)
    optimizer = _Twice([p for p in rig.parameters.values() if p.requires_grad])
    with refusals():
        rig.session = regplug.attach(rig.model, optimizer, [setup.make()])

    def evaluate() -> float:
        optimizer.zero_grad()
        loss = rig.loss(rig.data(0))
        loss.backward()
        return loss  # type: ignore[return-value]

    optimizer.step(evaluate)
    if subject.remembers:
        once = subject.rig(setup)
        once.step(0)
        if _counted(rig) != _counted(once):
            raise Failure(
                "it counts evaluations of the closure as steps, as the whole numbers of its state "
                "show: several of them make one step; go by session.steps, or count in after_step"
            )
        raise Skip("it draws at random, or remembers")
    first, second = optimizer.seen
    for one, other in zip(first, second, strict=True):
        if not torch.allclose(one, other, rtol=1e-9, atol=1e-12):
            raise Failure(
                "of two evaluations of the closure from the same weights it acts on the gradients "
                "of one alone: a line search compares them, so act in each, and count no steps "
                "there"
            )


def _counted(rig: Rig) -> list[int]:
    """Return the whole numbers in what its plugins remember."""

    def numbers(thing: Any) -> list[int]:
        if isinstance(thing, Mapping):
            thing = list(thing.values())
        if isinstance(thing, list | tuple):
            return [number for part in thing for number in numbers(part)]
        return [thing] if type(thing) is int else []

    assert rig.session is not None
    return numbers(rig.session.state_dict()["plugins"])


def _leaves_weights(subject: Subject, setup: Setup) -> None:
    first, last = _Looks("first"), _Looks("last")
    rig, plugin = subject.rig(None), setup.make()
    rig.session = regplug.attach(rig.model, rig.optimizer, [first, plugin, last])
    rig.run(2)
    for (event, before), (_, after) in zip(first.seen, last.seen, strict=True):
        if all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            continue
        if event == "on_gradients":
            raise Failure(
                "it changes weights in on_gradients, where the optimizer and its line search rely "
                "on them: do it in before_step or after_step"
            )
        if not plugin.changes_weights:
            raise Failure(
                f"it changes weights in {event}, though it says changes_weights = False, so that "
                "LBFGS takes it"
            )


def _lbfgs(subject: Subject, setup: Setup) -> None:
    def run(each: Setup, through_loss: bool) -> Rig:
        rig = subject.rig(None)
        optimizer = torch.optim.LBFGS(
            list(rig.parameters.values()), lr=0.5, max_iter=4, line_search_fn="strong_wolfe"
        )
        rig.session = regplug.attach(rig.model, optimizer, [each.make()])
        for _ in range(2):

            def evaluate() -> float:
                optimizer.zero_grad()
                loss = rig.loss(rig.data(0)) if through_loss else rig.criterion(rig.data(0))
                loss.backward()
                return loss  # type: ignore[return-value]

            optimizer.step(evaluate)
        return rig

    if isinstance(subject.plugin, Delivered):
        # Strong enough for a line search to see it.
        setup = subject.changed(setup, lambda value: min(20 * value, 1.0))
    with refusals():
        rig = run(setup, setup.delivery != "step")
    for name, w in rig.snapshot().weights.items():
        if not w.isfinite().all():
            raise Failure(f"under LBFGS {name} is not finite")
    if isinstance(subject.plugin, Delivered) and setup.delivery == "step":
        if "loss" not in subject.deliveries:
            raise Skip("it can't be delivered in the loss, to compare")
        in_loss = run(Setup(setup.source, "loss", setup.values), True)
        same(
            rig.snapshot(),
            in_loss.snapshot(),
            "under LBFGS it does not come to what it comes to in the loss: the value that it "
            "reports in on_closure is not the one whose gradient it adds",
            rtol=1e-4,
            atol=1e-6,
        )
