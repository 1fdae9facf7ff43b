"""Checks of what a plugin leaves behind: when it is detached, and when it is gone."""

import copy
import gc
import weakref
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

import regplug
from regplug.backend.living import living
from regplug.errors import RegplugError, SpecError
from regplug.plugin import Plugin
from regplug.testing.bench import Rig, Setup
from regplug.testing.checks.garbage import only_new_objects
from regplug.testing.checks.structure import check_restored, states, structure
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Subject, same

__all__: list[str] = []


class _Refuses(Plugin):
    """Fails to attach, after the plugin under exam has attached."""

    @regplug.hookimpl
    def on_attach(self, session: regplug.Session) -> None:
        raise SpecError("refused on purpose")


class _Fails(Plugin):
    """Fails in a step, after the plugin under exam has had its turn."""

    def __init__(self, event: str) -> None:
        self.event = event

    def _at(self, event: str) -> None:
        if event == self.event:
            raise SpecError("failed on purpose")

    @regplug.hookimpl
    def on_gradients(self, session: regplug.Session) -> None:
        self._at("on_gradients")

    @regplug.hookimpl
    def before_step(self, session: regplug.Session) -> None:
        self._at("before_step")

    @regplug.hookimpl
    def after_step(self, session: regplug.Session) -> None:
        self._at("after_step")


def _buffers(model: nn.Module) -> None:
    """Give the model what training leaves alone."""
    model.register_buffer("of_the_exam", torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64))
    model.register_buffer("counted", torch.tensor(7), persistent=False)


def bare(subject: Subject, setup: Setup) -> tuple[Rig, Plugin]:
    """Return a rig to attach to, with buffers and momentum, and a plugin that is not attached."""
    # A plugin that takes over the optimizer's own decay has something to give back here.
    for decay in (0.01, 0.0):
        rig, plugin = subject.rig(None, weight_decay=decay, momentum=0.9), setup.make()
        try:
            regplug.attach(rig.model, rig.optimizer, [plugin]).detach()
        except SpecError:
            continue
        break
    options = {"weight_decay": decay, "momentum": 0.9, "edit": _buffers, "calm": False}
    return subject.rig(None, **options), setup.make()


def _memory_of_parametrized(rig: Rig) -> set[str]:
    """Return what torch itself may leave otherwise where a parametrization is taken off."""
    found = set()
    for path, module in rig.model.named_modules():
        if is_parametrized(module):
            for name, _ in module.named_parameters():
                short = name.removeprefix("parametrizations.").partition(".")[0]
                found.add(f"{path}.{short}: memory".lstrip("."))
    return found


@check("restore", after=("surroundings",))
def restore(subject: Subject) -> Iterable[Case]:
    """Detaching leaves nothing behind on the loop, and what the user changed meanwhile stays.

    Looked at are the model's modules (classes, attributes, hooks, mode, buffers and their values),
    its weights (identity, memory, ``requires_grad``, hooks, attributes), and the optimizer
    (attributes, groups, options, hooks, the keys of its state): after ``detach()`` and a second
    one, where attaching another plugin fails, and after a step that failed. From there on the loop
    goes on to the very bits of one that never had the plugin.
    """

    def detached(setup: Setup) -> None:
        rig, plugin = bare(subject, setup)
        before = structure(rig)
        rig.session = regplug.attach(rig.model, rig.optimizer, [plugin])
        for name, p in rig.parameters.items():
            if p.grad is not None:
                raise Failure(
                    f"attached, it gives a gradient to {name}, which takes part in steps with it: "
                    "gradients are the loop's"
                )
        moved = _memory_of_parametrized(rig)
        rig.run(2)
        _same_memory(rig, before, moved)
        rig.session.detach()
        check_restored(rig, before, "after detach()", left_out=moved)
        plain = subject.rig(None, edit=_buffers, **options_of(rig))
        plain.run(2)
        expected = states(plain)
        for name, keys in states(rig).items():
            more = [key for key in keys if key not in expected.get(name, ())]
            if more or name not in expected:
                raise Failure(
                    f"after detach() it has left behind in optimizer.state of {name}: {more}, "
                    "which goes into checkpoints and into the optimizer's own update"
                )
        rig.session.detach()
        check_restored(rig, before, "after a second detach()", left_out=moved)

    def refused(setup: Setup) -> None:
        rig, plugin = bare(subject, setup)
        before = structure(rig)
        moved: set[str] = set()
        try:
            regplug.attach(rig.model, rig.optimizer, [plugin, _Refuses()])
        except SpecError:
            moved = {key for key in before if key.endswith(": memory")}
            check_restored(rig, before, "where another plugin failed to attach", left_out=moved)
        else:
            raise Failure("a plugin that failed to attach went unnoticed")

    def stumbled(setup: Setup, event: str) -> None:
        rig, plugin = bare(subject, setup)
        before = structure(rig)
        rig.session = regplug.attach(rig.model, rig.optimizer, [plugin, _Fails(event)])
        moved = _memory_of_parametrized(rig)
        with suppress(RegplugError):
            rig.step(0)
        rig.session.detach()
        check_restored(rig, before, f"after a step that failed in {event}", left_out=moved)

    setup = subject.given(subject.deliveries[0])
    yield "detach", partial(detached, setup)
    yield "failed attach", partial(refused, setup)
    for event in ("on_gradients", "after_step"):
        yield f"failed step, {event}", partial(stumbled, setup, event)
    yield "user's changes", partial(_keeps_changes, subject, setup)
    for each in subject.setups():
        yield f"goes on, {each.regime}", partial(_goes_on, subject, each)


def options_of(rig: Rig) -> dict[str, Any]:
    """Return the options with which a rig's optimizer was made, and how calm it is."""
    group = rig.optimizer.param_groups[0]
    return {**{key: group[key] for key in ("weight_decay", "momentum")}, "calm": False}


def _same_memory(rig: Rig, before: dict[str, Any], moved: set[str]) -> None:
    for name, p in rig.model.named_parameters():
        key = f"{name}: memory"
        if key in before and key not in moved and p.data_ptr() != before[key][0]:
            raise Failure(
                f"it has put other memory under {name}, as p.data = … does: views of the weight, "
                "flat buffers and CUDA graphs go on with the old one; write in place, by copy_"
            )


def _keeps_changes(subject: Subject, setup: Setup) -> None:
    """Detach after the user has changed the loop by hand: it is the user's to change."""
    rig, plugin = bare(subject, setup)
    rig.session = regplug.attach(rig.model, rig.optimizer, [plugin])
    rig.run(2)
    group, name = rig.optimizer.param_groups[0], list(rig.parameters)[-1]
    module = next(m for m in rig.model.modules() if not list(m.children()))
    group["lr"], group["of_the_user"] = 0.007, "kept"
    rig.parameters[name].requires_grad_(False)
    rig.model.register_buffer("of_the_user", torch.ones(2))
    module.eval()
    module.of_the_user = "kept"  # type: ignore[assignment]
    handle = module.register_forward_hook(lambda module, inputs, output: None)
    momentum = {
        p: state["momentum_buffer"].clone() for p, state in rig.optimizer.state.items() if state
    }
    baked, before = _memory_of_parametrized(rig), rig.snapshot().weights
    gradients = {
        name: (p.grad, None if p.grad is None else p.grad.clone())
        for name, p in rig.parameters.items()
    }
    rig.session.detach()
    _trained(rig, before, gradients, baked)
    others = module.register_forward_hook(lambda module, inputs, output: None)
    kept = {
        "the learning rate that a scheduler has set": group is rig.optimizer.param_groups[0]
        and (group["lr"], group.get("of_the_user")) == (0.007, "kept"),
        f"requires_grad=False of {name}": not rig.parameters[name].requires_grad,
        "a buffer that was registered": "of_the_user" in dict(rig.model.named_buffers()),
        "eval() of a module": not module.training,
        "an attribute of a module": getattr(module, "of_the_user", None) == "kept",
        "a forward hook": handle.id in (others.hooks_dict_ref() or ()),
        "the momentum": all(
            torch.equal(rig.optimizer.state[p]["momentum_buffer"], value)
            if "momentum_buffer" in rig.optimizer.state[p]
            else False
            for p, value in momentum.items()
        ),
    }
    for what, holds in kept.items():
        if not holds:
            raise Failure(
                f"detach() has undone what the user did while it was attached: {what} is gone; "
                "put back single things that the plugin has changed, not a copy of everything"
            )


def _trained(
    rig: Rig, weights: dict[str, torch.Tensor], gradients: dict[str, Any], baked: set[str]
) -> None:
    """What training has brought about stays, but where torch bakes something into a weight."""
    for name, p in rig.parameters.items():
        if f"{name}: memory" in baked:
            continue
        if not torch.equal(p.detach(), weights[name]):
            raise Failure(
                f"detach() changes {name}: what was trained stays; what is to be put back is what "
                "the plugin has changed beside the weights"
            )
        held, copied = gradients[name]
        if p.grad is not held or (held is not None and not torch.equal(held, copied)):
            raise Failure(f"detach() changes the gradient of {name}, which is the loop's")


def _goes_on(subject: Subject, setup: Setup) -> None:
    rig, plugin = bare(subject, setup)
    rig.session = regplug.attach(rig.model, rig.optimizer, [plugin])
    rig.run(2)
    rig.detach()
    rig.session = None
    plain = subject.rig(None, edit=_buffers, **options_of(rig))
    with torch.no_grad():
        for name, p in plain.parameters.items():
            p.copy_(rig.parameters[name])
    plain.optimizer.load_state_dict(copy.deepcopy(rig.optimizer.state_dict()))
    for each in (rig, plain):
        torch.manual_seed(3)
        each.optimizer.zero_grad()
        each.run(2)
    same(
        rig.snapshot(),
        plain.snapshot(),
        "after detach() the loop goes on otherwise than one that never had it",
        rtol=0,
        atol=0,
    )


@check("leak")
def leak(subject: Subject) -> Iterable[Case]:
    """Steps do not pile up tensors, and a detached session does not live on."""

    def grows(setup: Setup) -> None:
        rig = subject.rig(setup)
        rig.run(3)
        with only_new_objects():
            rig.run(2)
            before = _tensors()
            rig.run(8)
            more = _tensors() - before
        if more > 0:
            raise Failure(f"after 8 more steps {more} more tensors are alive")

    def outlives(setup: Setup) -> None:
        with only_new_objects():
            detached(setup)

    def detached(setup: Setup) -> None:
        rig = subject.rig(setup)
        rig.run(2)
        rig.detach()
        held = {
            what: weakref.ref(thing)
            for what, thing in (
                ("the plugin", rig.plugin),
                ("the session", rig.session),
                ("the model", rig.model),
            )
            if thing is not None
        }
        del rig
        gc.collect()
        for what, reference in held.items():
            if reference() is not None:
                raise Failure(f"{what} lives on after detach(): something still refers to it")

    for setup in subject.setups():
        yield f"growth, {setup.regime}", partial(grows, setup)
        yield f"after detach, {setup.regime}", partial(outlives, setup)


def _tensors() -> int:
    gc.collect()
    return len(living(lambda kind: issubclass(kind, torch.Tensor)))
