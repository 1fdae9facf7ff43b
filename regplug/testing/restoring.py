"""Checks of what a plugin leaves behind: when it is detached, and when it is gone."""

import gc
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

import regplug
from regplug.errors import SpecError
from regplug.plugin import Plugin
from regplug.testing.bench import Rig, Setup
from regplug.testing.registry import Case, check
from regplug.testing.structure import check_restored, structure
from regplug.testing.subject import Failure, Subject

__all__: list[str] = []


class _Refuses(Plugin):
    """Fails to attach, after the plugin under exam has attached."""

    @regplug.hookimpl
    def on_attach(self, session: regplug.Session) -> None:
        raise SpecError("refused on purpose")


@check("restore")
def restore(subject: Subject) -> Iterable[Case]:
    """Detaching leaves nothing behind, twice, after failures, and where attaching failed."""

    def bare(setup: Setup) -> tuple[Rig, Plugin]:
        # A plugin that takes over the optimizer's own decay has something to give back here.
        for decay in (0.01, 0.0):
            rig, plugin = subject.rig(None, weight_decay=decay), setup.make()
            try:
                regplug.attach(rig.model, rig.optimizer, [plugin]).detach()
            except SpecError:
                continue
            break
        return subject.rig(None, weight_decay=decay), setup.make()

    def detached(setup: Setup) -> None:
        rig, plugin = bare(setup)
        before = structure(rig)
        rig.session = regplug.attach(rig.model, rig.optimizer, [plugin])
        rig.run(2)
        rig.session.detach()
        check_restored(rig, before, "after detach()")
        rig.session.detach()
        check_restored(rig, before, "after a second detach()")

    def refused(setup: Setup) -> None:
        rig, plugin = bare(setup)
        before = structure(rig)
        try:
            regplug.attach(rig.model, rig.optimizer, [plugin, _Refuses()])
        except SpecError:
            check_restored(rig, before, "where another plugin failed to attach")
        else:
            raise Failure("a plugin that failed to attach went unnoticed")

    setup = subject.given(subject.deliveries[0])
    yield "detach", partial(detached, setup)
    yield "failed attach", partial(refused, setup)


@check("leak")
def leak(subject: Subject) -> Iterable[Case]:
    """Steps do not pile up tensors, and a detached session does not live on."""

    def grows(setup: Setup) -> None:
        rig = subject.rig(setup)
        rig.run(3)
        with _only_new_objects():
            rig.run(2)
            before = _tensors()
            rig.run(8)
            more = _tensors() - before
        if more > 0:
            raise Failure(f"after 8 more steps {more} more tensors are alive")

    def outlives(setup: Setup) -> None:
        with _only_new_objects():
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


@contextmanager
def _only_new_objects() -> Iterator[None]:
    """Let the garbage collector look at what is made in here alone: a second faster each time."""
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _tensors() -> int:
    gc.collect()
    # By type: isinstance would ask each object for its __class__, which some answer by a warning.
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
