"""Check of what a plugin leaves behind outside its own loop: in the process."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

import regplug
from regplug.testing.knobs import KNOBS, ODD, USUAL, readings, set_back
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Subject
from regplug.testing.surroundings import Surroundings

__all__: list[str] = []

_WAY_OUT = (
    "; other loops of the process share it: leave it alone, or set it for a block only, with "
    "`with` or try/finally, and put it back in on_detach"
)


@check("surroundings")
def surroundings(subject: Subject) -> Iterable[Case]:
    """Once detached, it leaves the process as it was.

    Looked at are settings of torch, numpy and Python (default dtype and device, gradient mode,
    determinism, precision, threads, autocast, warnings, loggers, signals, environment, paths …),
    hooks that hold for all modules or optimizers, and the attributes of torch's modules and
    classes, of the model's, of the optimizer's class and of regplug's own. The settings are looked
    at as a process begins, and as hardly anyone sets them, so that one who sets what was set
    before is found out.
    """
    yield "since the exam began", partial(_since_the_beginning, subject)
    yield "usual settings", partial(_around, subject, USUAL)
    yield "odd settings", partial(_around, subject, ODD)


def _since_the_beginning(subject: Subject) -> None:
    try:
        subject.look_back()
        if (changed := subject.left_behind) is not None:
            raise Failure(f"after it was attached and detached, {changed}{_WAY_OUT}")
    finally:
        subject.surroundings.put_back()


@contextmanager
def _settings(values: Mapping[str, Any]) -> Iterator[None]:
    before = readings()
    try:
        for name, value in values.items():
            put = KNOBS[name][1]
            if put is not None and name in before:
                put(value)
        yield
    finally:
        set_back(before)


def _see_end(started: list[threading.Thread]) -> None:
    """Give threads that began at attach, and were told to end, a second for it."""
    until = time.monotonic() + 1.0
    for thread in started:
        thread.join(max(0.0, until - time.monotonic()))
        if thread.is_alive():
            raise Failure(
                f"after detach() the thread {thread.name} goes on: let on_detach end it, and wait "
                "for it by join()"
            )


def _around(subject: Subject, values: Mapping[str, Any]) -> None:
    setup = subject.given(subject.deliveries[0])
    rig = subject.rig(None)
    with _settings(values):
        before = Surroundings(rig.model, rig.optimizer)
        threads = threading.enumerate()
        try:
            rig.plugin = setup.make()
            rig.session = regplug.attach(rig.model, rig.optimizer, [rig.plugin])
            started = [t for t in threading.enumerate() if t not in threads]
            if not torch.is_grad_enabled():
                raise Failure(f"attached, it leaves gradient mode off{_WAY_OUT}")
            try:
                rig.run(2)
                rig.session.metrics()
                rig.session.describe()
            finally:
                rig.detach()
            if (changed := before.changed()) is not None:
                raise Failure(f"after detach() {changed}{_WAY_OUT}")
            _see_end(started)
        finally:
            before.put_back()
