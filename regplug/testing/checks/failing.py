"""Check of what comes out when a plugin fails: an error that says who, where and when."""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import regplug
from regplug.bases.delivered import Delivered
from regplug.bases.joint import JointPenalty
from regplug.errors import PluginError, RegplugError
from regplug.penalty import Penalty
from regplug.testing.bench import Rig, Setup
from regplug.testing.checks.structure import check_restored, structure
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject

__all__: list[str] = []


class _Injected(Exception):  # noqa: N818 - told from every real error
    """The error that the exam puts into a plugin."""


@check("attribution", after=("restore",))
def attribution(subject: Subject) -> Iterable[Case]:
    """An error inside it comes out as an error that says who, where and when."""
    for setup in subject.setups():
        yield f"inside, {setup.regime}", partial(_inside, subject, setup)
    setup = subject.given(subject.deliveries[0])
    for hook in ("on_loss", "on_gradients", "before_step", "after_step"):
        if subject.implements(hook):
            yield hook, partial(_in_hook, subject, setup, hook)
            for each in subject.setups():
                if isinstance(subject.plugin, Delivered) and not _acts_in(subject, each, hook):
                    continue
                regime = f"an operation of {hook}, {each.regime}"
                yield regime, partial(_operation, subject, each, hook)


def _acts_in(subject: Subject, setup: Setup, hook: str) -> bool:
    """Whether a penalty's formula is called in this event, or a hook of its own."""
    base = JointPenalty if isinstance(subject.plugin, JointPenalty) else Penalty
    if getattr(type(subject.plugin), hook) is not getattr(base, hook):
        return True
    return (setup.delivery, hook) in {("step", "on_gradients"), ("proximal", "after_step")}


class _Fails(TorchDispatchMode):
    """Lets the first operation on tensors fail."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.failed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.failed = True
        raise _Injected("put in by the exam")


def _operation(subject: Subject, setup: Setup, hook: str) -> None:
    """Let an operation of the hook fail: a bare except around it would go on without a word."""
    plugin = setup.make()
    own = getattr(plugin, hook)
    modes: list[_Fails] = []

    def fails(**given: object) -> object:
        modes.append(_Fails())
        with modes[-1]:
            return own(**given)

    rig = subject.rig(None)
    replaced = _with_loss(fails) if "loss" in inspect.signature(own).parameters else _plain(fails)
    setattr(plugin, hook, regplug.hookimpl(replaced))
    rig.attach(plugin)
    if hook in plugin.idle(rig.session):  # type: ignore[arg-type]
        rig.detach()
        raise Skip(f"it says that it has nothing to do in {hook}")
    _must_tell(
        rig,
        hook,
        required=lambda: any(mode.failed for mode in modes),
        unasked="it does nothing with tensors there",
    )


def _plain(fails: Callable[..., object]) -> Callable[..., object]:
    def replaced(session: regplug.Session) -> object:
        return fails(session=session)

    return replaced


def _with_loss(fails: Callable[..., object]) -> Callable[..., object]:
    def replaced(session: regplug.Session, loss: torch.Tensor) -> object:
        return fails(session=session, loss=loss)

    return replaced


def _inside(subject: Subject, setup: Setup) -> None:
    """Let what the plugin asks of its session raise: it must not swallow that."""
    rig = subject.rig(setup)
    rig.step(0)
    asked: list[str] = []

    def raises(*args: object, **kwargs: object) -> None:
        asked.append("asked")
        raise _Injected("put in by the exam")

    for name in ("updates", "coverage", "learning_rate"):
        setattr(rig.session, name, raises)
    _must_tell(rig, "", required=lambda: bool(asked))


def _in_hook(subject: Subject, setup: Setup, hook: str) -> None:
    def raises(session: regplug.Session) -> None:
        raise _Injected("put in by the exam")

    rig = subject.rig(None)
    plugin = setup.make()
    setattr(plugin, hook, regplug.hookimpl(raises))
    before = structure(rig)
    rig.plugin, rig.session = plugin, regplug.attach(rig.model, rig.optimizer, [plugin])
    if hook in plugin.idle(rig.session):
        # Left out from here on: what is not called can't fail.
        rig.detach()
        raise Skip(f"it says that it has nothing to do in {hook}")
    _must_tell(rig, hook, required=lambda: True)
    check_restored(rig, before, "after an error and detach()")


def _must_tell(
    rig: Rig,
    hook: str,
    required: Callable[[], bool],
    unasked: str = "it asks nothing of its session while training",
) -> None:
    assert rig.plugin is not None
    assert rig.session is not None
    step = rig.session.steps
    try:
        rig.step(step)
    except PluginError as error:
        text = str(error)
        missing = [
            part
            for part in (rig.plugin.name, rig.plugin.source, hook, f"step {step}")
            if part not in text
        ]
        if missing:
            raise Failure(f"the error does not name {missing}: {text}") from error
        if not isinstance(error.__cause__, _Injected):
            raise Failure("the original error is not the cause of the one raised") from error
    except (_Injected, RegplugError) as error:
        raise Failure(f"an error came out without the plugin's name: {error!r}") from error
    else:
        if required():
            raise Failure("it swallowed an error: training goes on without it, silently")
        raise Skip(unasked)
    finally:
        rig.detach()
