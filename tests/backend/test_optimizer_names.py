"""What is known of torch's optimizers by private names and frames, and what is done without."""

import functools
import gc
import inspect
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim.optimizer import register_optimizer_step_post_hook

import regplug
from regplug.backend import hook_order, optimizer_names, stack, step_events, wrapped
from regplug.errors import UnsupportedError
from regplug.finding import search
from tests.helpers.nets import one_layer

GONE = "_no_such_name"


@pytest.fixture(autouse=True)
def asked_anew() -> Any:
    """Forget what torch has, before and after a name of it is taken away."""
    memories = (optimizer_names._torch_marks, optimizer_names._set_by_scaler)
    for memory in (*memories, hook_order._warn_of_order):
        memory.cache_clear()
    yield
    for memory in (*memories, hook_order._warn_of_order):
        memory.cache_clear()


def linear(kind: Callable[..., Any] = torch.optim.SGD, **more: Any) -> tuple[nn.Linear, Any]:
    model = one_layer(2.0, 2.0, dtype=torch.float32)
    return model, kind(model.parameters(), lr=0.1, **more)


def backward(model: nn.Module) -> None:
    model.zero_grad()
    (0.0 * model(torch.ones(1, 2))).sum().backward()


# --- which optimizers have hooks ---------------------------------------------------------------


class SkipsInit(torch.optim.Optimizer):
    """As timm's Lookahead: it has the groups of the one inside, and no hooks."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.optimizer = inner
        self.param_groups, self.defaults, self.state = inner.param_groups, {}, inner.state

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


@pytest.mark.parametrize(
    "renamed", [(), ("_STEP_HOOKS",), ("_HOOKED",), ("_STEP_HOOKS", "_HOOKED")]
)
def test_who_has_hooks_is_known_without_the_table_and_the_mark(
    monkeypatch: pytest.MonkeyPatch, renamed: tuple[str, ...]
) -> None:
    for name in renamed:
        monkeypatch.setattr(optimizer_names, name, GONE)
    _, optimizer = linear()
    outer = SkipsInit(optimizer)
    assert optimizer_names.is_hooked(optimizer)
    assert not optimizer_names.is_hooked(outer)
    assert not optimizer_names.is_hooked(outer, step=False)
    assert wrapped.unwrap(outer) is optimizer
    found = [o for o in search.optimizers() if o in (optimizer, outer)]
    assert found == [optimizer]
    assert not optimizer._optimizer_step_pre_hooks  # what was asked with is gone


def test_a_torch_that_wraps_no_step_is_taken_at_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(torch.optim.SGD):
        pass

    model, _ = linear()
    optimizer = Plain(model.parameters(), lr=0.1)
    monkeypatch.setattr(optimizer_names, "_HOOKED", GONE)
    plain = inspect.unwrap(torch.optim.SGD.step)
    monkeypatch.setattr(torch.optim.SGD, "step", functools.partialmethod(plain))
    monkeypatch.setattr(optimizer_names, "_sample", lambda: optimizer)
    assert optimizer_names.is_hooked(optimizer)


# --- the order of hooks ------------------------------------------------------------------------


def test_without_tables_hooks_keep_the_order_of_registration_and_it_is_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Handle:
        """As torch's, with its table under another name."""

        def __init__(self, handle: Any) -> None:
            self.id, self.remove = handle.id, handle.remove

    for name in ("register_step_pre_hook", "register_step_post_hook"):
        register = getattr(torch.optim.Optimizer, name)
        monkeypatch.setattr(
            torch.optim.Optimizer,
            name,
            functools.partialmethod(lambda self, hook, r: Handle(r(self, hook)), r=register),
        )
    model, optimizer = linear()
    with pytest.warns(UserWarning, match="does not show the order.*register them"):
        session = regplug.attach(model, optimizer, ["l2(0.5)"])
    backward(model)
    optimizer.step()
    assert session.steps == 1
    torch.testing.assert_close(model.weight.detach(), torch.full((1, 2), 2.0 - 0.1 * 2.0))
    session.detach()
    backward(model)
    optimizer.step()
    assert session.steps == 1
    regplug.attach(model, optimizer, ["l2(0.5)"]).detach()  # no second warning


# --- steps within steps ------------------------------------------------------------------------


def steps_by_another_name(name: str, file: str) -> Callable[[Any], Any]:
    """Return a wrapper of ``step`` as torch's, but for the names of its function and its file."""
    source = (
        f"def {name}(*args, **kwargs):\n"
        "    stepper, *_ = args\n"
        "    for hook in list(stepper._optimizer_step_pre_hooks.values()):\n"
        "        changed = hook(stepper, args, kwargs)\n"
        "        if changed is not None:\n"
        "            args, kwargs = changed\n"
        "    result = function(*args, **kwargs)\n"
        "    for hook in list(stepper._optimizer_step_post_hooks.values()):\n"
        "        hook(stepper, args, kwargs)\n"
        "    return result\n"
    )

    def wrap(function: Any) -> Any:
        scope = {"function": function, "__name__": "torch.optim.elsewhere"}
        exec(compile(source, file, "exec"), scope)
        found: Any = functools.wraps(function)(scope[name])  # type: ignore[arg-type]
        found.hooked = True
        return found

    return wrap


@pytest.mark.parametrize("names", [("wrapper", "optimizer.py"), ("run_hooked", "elsewhere.py")])
def test_a_nested_step_fires_once_whatever_torch_calls_its_functions(
    names: tuple[str, str],
) -> None:
    wrap = steps_by_another_name(*names)

    class Inner(torch.optim.SGD):
        fails = 0

        @wrap
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)  # which has hooks of its own

    class Outer(Inner):
        @wrap
        def step(self, closure: Any = None) -> Any:
            if self.fails:
                self.fails -= 1
                raise OSError("no luck")
            return super().step(closure)

    model, optimizer = linear(Outer)
    session = regplug.attach(model, optimizer, ["l2(0.5)"])
    for steps in (1, 2):
        backward(model)
        optimizer.step()
        assert session.steps == steps
    torch.testing.assert_close(model.weight.detach(), torch.full((1, 2), 2.0 * 0.9**2))
    optimizer.fails = 2
    for _ in range(2):
        with pytest.raises(OSError, match="no luck"):
            optimizer.step()
    backward(model)
    optimizer.step()
    assert session.steps == 3
    assert session._events is not None
    assert session._events._call is None  # no frame is kept


def test_a_step_that_raised_is_no_longer_at_work_in_its_handler() -> None:
    class Flaky(torch.optim.SGD):
        broken = True

        def step(self, closure: Any = None) -> Any:
            if self.broken:
                raise OSError("no luck")
            return super().step(closure)

    model, optimizer = linear(Flaky)
    session = regplug.attach(model, optimizer, ["l2(0.5)"])
    backward(model)
    try:
        optimizer.step()
    except OSError:
        optimizer.broken = False
        backward(model)
        optimizer.step()  # while the traceback still holds the frame of the first one
    assert session.steps == 1
    torch.testing.assert_close(model.weight.detach(), torch.full((1, 2), 1.8))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, while it compiles
def test_a_compiled_nested_step_fires_once() -> None:
    class Outer(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    model, optimizer = linear(Outer)
    session = regplug.attach(model, optimizer, ["l2(0.5)"])
    step = torch.compile(optimizer.step, backend="eager")
    for steps in (1, 2):
        backward(model)
        step()
        assert session.steps == steps
    torch.testing.assert_close(model.weight.detach(), torch.full((1, 2), 2.0 * 0.9**2))
    torch.compiler.reset()


def test_what_a_step_that_raised_was_given_is_freed_with_the_session() -> None:
    class Failing(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise OSError("no luck")

    model, optimizer = linear(Failing)
    session = regplug.attach(model, optimizer, ["l2(0.5)"])
    backward(model)
    with pytest.raises(OSError, match="no luck"):
        optimizer.step()
    session.detach()
    gone = weakref.ref(model)
    gc.collect()  # of the traceback, which pytest holds in a cycle
    gc.disable()
    try:
        del model, session, optimizer
        assert gone() is None
    finally:
        gc.enable()


def test_a_python_without_frames_is_refused_at_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = linear()
    monkeypatch.setattr(inspect, "currentframe", lambda: None)
    with pytest.raises(UnsupportedError, match=r"currentframe.*session\.step"):
        regplug.attach(model, optimizer, ["l2(0.5)"])
    monkeypatch.undo()
    assert not optimizer._optimizer_step_pre_hooks
    regplug.attach(model, optimizer, ["l2(0.5)"]).detach()


def test_detaching_within_a_hook_that_comes_first_takes_hooks_out_after_the_step() -> None:
    model, optimizer = linear()
    sessions: list[Any] = []
    optimizer.register_step_pre_hook(lambda *arguments: sessions.pop().detach())
    sessions.append(regplug.attach(model, optimizer, ["l2(0.5)"]))
    backward(model)
    optimizer.step()
    assert torch.equal(model.weight.detach(), torch.full((1, 2), 2.0))
    assert len(optimizer._optimizer_step_pre_hooks) == 1


def test_who_steps_is_seen_from_within() -> None:
    seen: list[Any] = []

    class Outer(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return inner.step(closure)

    model, outer = linear(Outer)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    inner.register_step_pre_hook(lambda *arguments: seen.extend(stack.stepping([inner, outer])))
    outer.step()
    assert inner in seen
    assert outer in seen
    assert not list(stack.stepping([inner, outer]))


# --- steps that are none -----------------------------------------------------------------------


def test_the_dummy_step_is_known_without_a_name_on_the_stack() -> None:
    model, optimizer = linear(torch.optim.Adam)
    session = regplug.attach(model, optimizer, ["l2(0.5)"])
    get_optimizer_state_dict(model, optimizer)
    assert session.steps == 0
    optimizer.state.clear()
    optimizer.param_groups[0]["lr"] = 0.0
    model.weight.grad = torch.zeros_like(model.weight)
    assert step_events._is_dummy(optimizer)  # called by no function of torch's
    model.weight.grad[0, 0] = 1e-30
    assert not step_events._is_dummy(optimizer)


def test_weights_updated_in_backward_are_told_of_at_the_latest_where_no_step_was_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, optimizer = linear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own, on the way
        from torch.distributed.optim import _apply_optimizer_in_backward

    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})
    with pytest.raises(UnsupportedError, match="updated inside backward"):
        regplug.attach(model, optimizer, ["l2(0.5)"])
    monkeypatch.setattr(optimizer_names, "_IN_BACKWARD", GONE)
    session = regplug.attach(model, optimizer, ["l2(0.5)"])

    def train() -> None:
        for _ in range(20):
            session.loss(model(torch.ones(1, 2)).sum()).backward()
            optimizer.step()

    with pytest.warns(UserWarning, match="no step was seen"):
        train()


def test_a_hook_on_the_accumulated_gradient_is_found_by_public_ways() -> None:
    model, _ = linear()
    assert not step_events._has_hook(model.weight)
    handle = model.weight.register_post_accumulate_grad_hook(lambda p: None)
    assert step_events._has_hook(model.weight)
    handle.remove()
    assert not step_events._has_hook(model.weight)


# --- under a GradScaler ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["_OVERFLOW", "_SCALE"])
def test_fused_optimizers_are_refused_where_a_scaler_tells_them_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(optimizer_names, name, GONE)
    model, optimizer = linear(fused=True)
    with pytest.raises(UnsupportedError, match=rf"Optimizer\.{GONE}.*fused=False"):
        regplug.attach(model, optimizer, ["l2(0.5)"])
    model, optimizer = linear()
    regplug.attach(model, optimizer, ["l2(0.5)"]).detach()


def test_a_scaler_is_asked_once_and_nobody_notices() -> None:
    seen: list[Any] = []
    handle = register_optimizer_step_post_hook(lambda *arguments: seen.append(arguments))
    model, optimizer = linear(fused=True)
    state = torch.get_rng_state()
    try:
        for _ in range(2):
            regplug.attach(model, optimizer, ["l2(0.5)"]).detach()
    finally:
        handle.remove()
    assert not seen
    assert optimizer_names._set_by_scaler.cache_info().misses == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_an_overflow_step_of_a_fused_optimizer_is_none() -> None:
    model, optimizer = linear(fused=True)
    session = regplug.attach(model, optimizer, ["l2(0.5)"])
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for value, steps in ((float("inf"), 0), (1.0, 1)):
        optimizer.zero_grad()
        scaler.scale(value * model(torch.ones(1, 2)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert session.steps == steps
    torch.testing.assert_close(model.weight.detach(), torch.full((1, 2), 2.0 - 0.1 * (1.0 + 2.0)))
