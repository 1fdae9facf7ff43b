"""Checks of a plugin's life: saved, resumed, detached, gone, and failing."""

import copy
import gc
import io
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

import regplug
from regplug.errors import PluginError, RegplugError, SpecError
from regplug.plugin import Plugin
from regplug.testing.bench import Rig, Setup, rates
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject, same

__all__: list[str] = []


@check("state")
def state(subject: Subject) -> Iterable[Case]:
    """Its state is made of plain types, goes by its name, and comes back as it was."""
    setup = subject.given(subject.deliveries[0])

    def round_trip() -> None:
        rig = subject.rig(setup)
        rig.run(2)
        assert rig.session is not None
        saved = rig.session.state_dict()
        loaded = _through_file(saved)
        fresh = subject.rig(setup)
        assert fresh.session is not None
        fresh.session.load_state_dict(loaded)
        if (told := _unlike(fresh.session.state_dict(), saved)) is not None:
            raise Failure(f"after saving and loading, {told}")

    def by_name() -> None:
        twins = [_named(setup, "first"), _named(setup, "second")]
        rig = subject.rig(None)
        try:
            session = regplug.attach(rig.model, rig.optimizer, twins)
        except SpecError as error:
            raise Skip(f"two of them can't be attached together: {error}") from error
        if [twin.name for twin in twins] != ["first", "second"]:
            raise Failure("its name can't be set, so that two of them have states of one name")
        for step in range(2):
            rig.optimizer.zero_grad()
            session.loss(rig.criterion(rig.data(step))).backward()
            rig.optimizer.step()
        saved = copy.deepcopy(session.state_dict())
        other = subject.rig(None)
        turned = [_named(setup, "second"), _named(setup, "first")]
        again = regplug.attach(other.model, other.optimizer, turned)
        again.load_state_dict(saved)
        if (told := _unlike(again.state_dict(), saved)) is not None:
            raise Failure(f"loaded into plugins attached in another order, {told}")
        again.detach()
        session.detach()

    yield "round trip", round_trip
    yield "by name", by_name


def _named(setup: Setup, name: str) -> Plugin:
    return Setup(setup.source, setup.delivery, {**setup.values, "name": name}).make()


def _through_file(saved: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    try:
        loaded: dict[str, Any] = torch.load(file, weights_only=True)
    except Exception as error:
        raise Failure(
            "torch.load(weights_only=True) does not read its state, which may hold numbers, "
            f"strings, tensors, and lists and dicts of them: {error}"
        ) from error
    return loaded


def _unlike(found: Any, expected: Any, path: str = "state") -> str | None:
    if isinstance(expected, torch.Tensor):
        equal = isinstance(found, torch.Tensor) and torch.equal(found, expected)
        return None if equal else f"{path} is another tensor"
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping) or set(found) != set(expected):
            return f"{path} has other keys"
        pairs = [(f"{path}[{key!r}]", found[key], expected[key]) for key in expected]
    elif isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            return f"{path} has another length"
        pairs = [
            (f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(found, expected, strict=True))
        ]
    else:
        return None if found == expected else f"{path} is {found!r} instead of {expected!r}"
    return next((told for p, a, b in pairs if (told := _unlike(a, b, p)) is not None), None)


@check("resume", after=("every-batch",))
def resume(subject: Subject) -> Iterable[Case]:
    """A run that is interrupted and resumed ends in the same bits as one that is not."""

    def run(setup: Setup) -> None:
        options = {"calm": False, "momentum": 0.9}
        straight = subject.rig(setup, **options)
        straight.run(3)
        assert straight.session is not None
        saved = copy.deepcopy(
            {
                "model": straight.model.state_dict(),
                "optimizer": straight.optimizer.state_dict(),
                "session": straight.session.state_dict(),
            }
        )
        random = torch.get_rng_state()
        for step in range(3, 6):
            straight.step(step)

        resumed = subject.rig(setup, **options, edit=_disturb)
        assert resumed.session is not None
        resumed.model.load_state_dict(saved["model"])
        resumed.optimizer.load_state_dict(saved["optimizer"])
        resumed.session.load_state_dict(saved["session"])
        torch.set_rng_state(random)
        for step in range(3, 6):
            resumed.step(step)
        if resumed.session.steps != 6:
            raise Failure(f"after 3 + 3 steps the session counts {resumed.session.steps}")
        same(
            resumed.snapshot(),
            straight.snapshot(),
            "a resumed run ends otherwise than one that was not interrupted; what the plugin "
            "remembers belongs into on_state and on_load_state",
            rtol=0,
            atol=0,
        )

    for delivery in subject.deliveries:
        setup = subject.given(delivery)
        yield setup.regime, partial(run, setup)


def _disturb(model: torch.nn.Module) -> None:
    """Start from other weights, as a new process does before it loads the old ones."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)


def _structure(rig: Rig) -> dict[str, Any]:
    """Describe everything but the weights that a plugin could have changed."""
    found: dict[str, Any] = {}
    for path, module in rig.model.named_modules():
        at = path or "the model"
        found[f"{at}: class"] = type(module)
        found[f"{at}: attributes"] = sorted(vars(module))
        found[f"{at}: training"] = module.training
        for name, value in rates(module):
            found[f"{at}.{name}"] = value
        for name, value in vars(module).items():
            if isinstance(value, float | torch.Tensor):
                found[f"{at}.{name}: type"] = type(value)
            if name.endswith("_hooks") and isinstance(value, dict):
                found[f"{at}: {name}"] = len(value)
    for name, p in rig.model.named_parameters(remove_duplicate=False):
        found[f"{name}: identity"] = id(p)
        found[f"{name}: requires_grad"] = p.requires_grad
        for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            found[f"{name}: {hooks}"] = len(getattr(p, hooks, None) or ())
    for name, buffer in rig.model.named_buffers():
        found[f"{name}: buffer"] = id(buffer)
    for index, group in enumerate(rig.optimizer.param_groups):
        options = {key: value for key, value in group.items() if key != "params"}
        found[f"options of parameter group {index}"] = repr(sorted(options.items()))
    for name, value in vars(rig.optimizer).items():
        if name.endswith("_hooks"):
            found[f"the optimizer's {name}"] = len(value)
    return found


def _unrestored(rig: Rig, before: dict[str, Any], when: str) -> None:
    after = _structure(rig)
    for key in {**before, **after}:
        if before.get(key) != after.get(key):
            raise Failure(
                f"{when} it has left behind: {key} is {after.get(key)!r}, was {before.get(key)!r}"
            )


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
        before = _structure(rig)
        rig.session = regplug.attach(rig.model, rig.optimizer, [plugin])
        rig.run(2)
        rig.session.detach()
        _unrestored(rig, before, "after detach()")
        rig.session.detach()
        _unrestored(rig, before, "after a second detach()")

    def refused(setup: Setup) -> None:
        rig, plugin = bare(setup)
        before = _structure(rig)
        try:
            regplug.attach(rig.model, rig.optimizer, [plugin, _Refuses()])
        except SpecError:
            _unrestored(rig, before, "where another plugin failed to attach")
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


class _Injected(Exception):  # noqa: N818 - told from every real error
    """The error that the exam puts into a plugin."""


@check("attribution")
def attribution(subject: Subject) -> Iterable[Case]:
    """An error inside it comes out as an error that says who, where and when."""
    for setup in subject.setups():
        yield f"inside, {setup.regime}", partial(_inside, subject, setup)
    setup = subject.given(subject.deliveries[0])
    for hook in ("on_loss", "on_gradients", "before_step", "after_step"):
        if subject.implements(hook):
            yield hook, partial(_in_hook, subject, setup, hook)


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
    before = _structure(rig)
    rig.plugin, rig.session = plugin, regplug.attach(rig.model, rig.optimizer, [plugin])
    _must_tell(rig, hook, required=lambda: True)
    _unrestored(rig, before, "after an error and detach()")


def _must_tell(rig: Rig, hook: str, required: Callable[[], bool]) -> None:
    assert rig.plugin is not None
    assert rig.session is not None
    step = rig.session.steps
    try:
        rig.step(step)
    except PluginError as error:
        told = str(error)
        missing = [
            part
            for part in (rig.plugin.name, rig.plugin.source, hook, f"step {step}")
            if part not in told
        ]
        if missing:
            raise Failure(f"the error does not name {missing}: {told}") from error
        if not isinstance(error.__cause__, _Injected):
            raise Failure("the original error is not the cause of the one raised") from error
    except (_Injected, RegplugError) as error:
        raise Failure(f"an error came out without the plugin's name: {error!r}") from error
    else:
        if required():
            raise Failure("it swallowed an error: training goes on without it, silently")
        raise Skip("it asks nothing of its session while training")
    finally:
        rig.detach()
