"""Checks of copies of a model and of a plugin, and of autocast around them."""

import copy
from collections.abc import Iterable
from functools import partial

import torch

from regplug.testing.bench import Rig, Setup
from regplug.testing.checks.refusing import refusals
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Subject, same

__all__: list[str] = []

_BASICS = ("every-batch", "reproducible", "surroundings")


@check("copies", after=(*_BASICS, "restore"))
def copies(subject: Subject) -> Iterable[Case]:
    """The model can be copied while it is attached, as averages of weights are; so can the plugin.

    The copy computes what the model computes, and to evaluate and to train it makes no difference
    to the model. A copy of a plugin that is not attached does what the plugin does.
    """
    setup = subject.loud(subject.deliveries[0])
    yield "of the model", partial(_of_model, subject, setup)
    yield "of the plugin", partial(_of_plugin, subject, setup)


def _of_model(subject: Subject, setup: Setup) -> None:
    found = subject.rig(setup)
    for step in range(4):
        found.step(step)
        if step != 1:
            continue
        random = torch.get_rng_state()
        try:
            twin = copy.deepcopy(found.model)
        except Exception as error:
            raise Failure(
                f"the model can't be copied while it is attached: {type(error).__name__}: {error}; "
                "keep on modules nothing but modules, numbers and leaf tensors"
            ) from error
        outputs = []
        for model in (twin, found.model):
            torch.manual_seed(2)
            with torch.no_grad():
                outputs.append(model(found.data(0)))
        if not torch.equal(*outputs):
            raise Failure("a copy of the model computes something else than the model")
        if subject.adds_to_loss:
            # What a hook on the copy takes of the copy's own training may be in the next loss.
            return
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        twin(found.data(0)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.set_rng_state(random)
    same(
        found.snapshot(),
        subject.rig(setup).run(4),
        "to train a copy of the model makes a difference to the model",
        rtol=0,
        atol=0,
    )


def _of_plugin(subject: Subject, setup: Setup) -> None:
    try:
        original = setup.make()
        twin = copy.deepcopy(original)
    except Exception as error:
        raise Failure(
            f"it can't be copied: {type(error).__name__}: {error}; an instance holds what its "
            "__init__ was given, and makes the rest in on_attach"
        ) from error
    if twin is original:
        raise Failure("its copy is itself: let __deepcopy__ make another, or do without")
    found = subject.rig(Setup(lambda: twin, setup.delivery, setup.values)).run(3)
    same(found, subject.rig(setup).run(3), "a copy of it acts otherwise", rtol=1e-9, atol=1e-12)


@check("autocast", after=(*_BASICS, "dtype"))
def autocast(subject: Subject) -> Iterable[Case]:
    """Under autocast it does what it does without, as near as half precision comes to that."""
    for setup in subject.setups():
        yield setup.regime, partial(_autocast, subject, setup)


def _autocast(subject: Subject, setup: Setup) -> None:
    def step(rig: Rig, enabled: bool) -> None:
        rig.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = rig.loss(rig.data(0))
        loss.backward()
        rig.optimizer.step()

    def effect(enabled: bool) -> tuple[dict[str, torch.Tensor], float]:
        """Return what it does to each weight, and how far the farthest goes without it."""
        rigs = [subject.rig(each, dtype=torch.float32) for each in (setup, None)]
        start = rigs[1].snapshot().weights
        for rig in rigs:
            torch.manual_seed(2)
            with refusals():
                step(rig, enabled)
        for name, p in rigs[0].parameters.items():
            if p.dtype != torch.float32 or (p.grad is not None and p.grad.dtype != torch.float32):
                raise Failure(f"under autocast {name} or its gradient is no longer float32")
            if not p.isfinite().all():
                raise Failure(f"under autocast {name} is not finite")
        found, plain = (rig.snapshot().weights for rig in rigs)
        way = max(float((w - start[name]).abs().max()) for name, w in plain.items())
        return {name: w - plain[name] for name, w in found.items()}, way

    (under, _), (without, way) = effect(True), effect(False)
    if subject.plugin.stochastic:
        return  # in another dtype other numbers are drawn
    largest = max((float(e.abs().max()) for e in without.values() if e.numel()), default=0.0)
    for name, expected in without.items():
        gap = float((under[name] - expected).abs().max()) if expected.numel() else 0.0
        # The gradient of the data, with which it may be added up, is rounded too.
        if not gap <= 0.05 * largest + 0.01 * way:
            raise Failure(
                f"under autocast what it does to {name} differs by {gap:.3g}, where without it "
                f"does {largest:.3g}: compute in the dtype of the weights, with autocast off"
            )
