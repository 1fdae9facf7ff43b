"""What is known by frames and by names is known wherever torch has it, or it is told."""

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim import optimizer as optim_module

import regplug
from regplug import hookimpl
from regplug.backend import lent, private, stack, step_events, wrappers
from regplug.errors import UnsupportedError

GONE = "_no_such_name"


def hooked_elsewhere(function: Any) -> Any:
    """Run ``function`` as a step with its hooks, in a module and by names that torch has not."""
    source = (
        "def run(*given, **more):\n"
        "    for hook in chain(before.values(), given[0]._optimizer_step_pre_hooks.values()):\n"
        "        changed = hook(given[0], given, more)\n"
        "        if changed is not None:\n"
        "            given, more = changed\n"
        "    result = function(*given, **more)\n"
        "    for hook in chain(given[0]._optimizer_step_post_hooks.values(), after.values()):\n"
        "        hook(given[0], given, more)\n"
        "    return result\n"
    )
    scope = {
        "function": function,
        "chain": itertools.chain,
        "before": optim_module._global_optimizer_pre_hooks,
        "after": optim_module._global_optimizer_post_hooks,
        "__name__": "steps.elsewhere",
    }
    exec(compile(source, "elsewhere.py", "exec"), scope)
    found: Any = functools.wraps(function)(scope["run"])  # type: ignore[arg-type]
    found.hooked = True
    return found


class Descent(Optimizer):
    """Plain gradient descent, of nobody's."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @hooked_elsewhere
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])


def linear(kind: Any = Descent, **more: Any) -> tuple[nn.Linear, Any]:
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    return model, kind(model.parameters(), lr=0.1, **more)


def backward(model: nn.Module) -> None:
    model.zero_grad()
    (0.0 * model(torch.ones(1, 2))).sum().backward()


# --- who steps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Descent, torch.optim.SGD, torch.optim.Adam])
def test_who_steps_is_known_by_what_runs_it(kind: Any) -> None:
    model, optimizer = linear(kind)
    _, other = linear(kind)
    seen: list[Any] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(list(stack.stepping([other]))))
    optimizer.register_step_pre_hook(lambda *_: seen.append([*stack.stepping([other, optimizer])]))
    backward(model)
    optimizer.step()
    assert seen[0] == []
    assert set(seen[1]) == {optimizer}
    assert not list(stack.stepping([optimizer, other]))
    assert not stack.is_stepping(optimizer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, while it compiles
@pytest.mark.parametrize("kind", [Descent, torch.optim.SGD])
def test_who_steps_is_known_of_a_compiled_step(kind: Any) -> None:
    seen: list[bool] = []

    class Looks(regplug.Plugin):
        @hookimpl
        def before_step(self, session: regplug.Session) -> None:
            seen.append(stack.is_stepping(optimizer))

    model, optimizer = linear(kind)
    session = regplug.attach(model, optimizer, [Looks()])
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(2):
        backward(model)
        step()
    session.detach()
    assert seen == [True, True]
    torch.compiler.reset()


def detach_in_a_hook(model: Any, optimizer: Any) -> None:
    """Detach in a hook before regplug's: those after it are called, and nothing is penalized."""
    sessions: list[Any] = []
    called: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: sessions.pop().detach())
    sessions.append(regplug.attach(model, optimizer, ["l2(0.5)"]))
    optimizer.register_step_pre_hook(lambda *_: called.append("another"))
    backward(model)
    optimizer.step()
    assert called == ["another"]
    assert torch.equal(model.weight.detach(), torch.full((1, 2), 2.0))


@pytest.mark.parametrize("kind", [Descent, torch.optim.SGD])
def test_detaching_in_a_hook_that_comes_first_leaves_the_others_alone(kind: Any) -> None:
    model, optimizer = linear(kind)
    detach_in_a_hook(model, optimizer)
    assert len(optimizer._optimizer_step_pre_hooks) == 2


class NoFunction:
    """A step that is no function of Python's, as one written in C would be."""

    hooked = True

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, optimizer: Any, closure: Any = None) -> Any:
        inner = hooked_elsewhere(torch.optim.SGD.step.__wrapped__)  # type: ignore[attr-defined]
        return inner(optimizer)


def test_where_frames_show_no_step_one_may_be_at_work() -> None:
    class Hidden(torch.optim.SGD):
        step = NoFunction()  # type: ignore[assignment]

    model, optimizer = linear(Hidden)
    assert stack.is_stepping(optimizer)
    detach_in_a_hook(model, optimizer)


@pytest.mark.parametrize("event", ["before_step", "after_step"])
def test_detaching_within_a_step_without_the_tables_of_hooks(
    monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    class Handle:
        """As torch's, with its table under another name."""

        def __init__(self, handle: Any) -> None:
            self.id, self.remove = handle.id, handle.remove

    for name in ("register_step_pre_hook", "register_step_post_hook"):
        register = getattr(Optimizer, name)
        monkeypatch.setattr(
            Optimizer,
            name,
            functools.partialmethod(lambda self, hook, r: Handle(r(self, hook)), r=register),
        )

    def detach(self: Any, session: Any) -> None:
        sessions.pop().detach()

    leaves = type("Leaves", (regplug.Plugin,), {event: hookimpl(detach)})
    regplug.backend.hook_order._warn_of_order.cache_clear()
    model, optimizer = linear(torch.optim.SGD)
    called: list[str] = []
    with pytest.warns(UserWarning, match="does not show the order"):
        sessions = [regplug.attach(model, optimizer, [leaves()])]
    optimizer.register_step_pre_hook(lambda *_: called.append("pre"))
    optimizer.register_step_post_hook(lambda *_: called.append("post"))
    for _ in range(2):
        backward(model)
        optimizer.step()
    assert called == ["pre", "post"] * 2
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    regplug.backend.hook_order._warn_of_order.cache_clear()


# --- within which call -------------------------------------------------------------------------


def test_hooks_called_by_what_is_over_before_the_step_are_told_of() -> None:
    class Helped(torch.optim.SGD):
        """Calls its hooks by a helper, so that no frame tells how long a step takes."""

        def call_them(self, hooks: Any) -> None:
            for hook in list(hooks.values()):
                hook(self, (self,), {})

        def step(self, closure: Any = None) -> Any:
            self.call_them(self._optimizer_step_pre_hooks)
            inspect_step(self)
            self.call_them(self._optimizer_step_post_hooks)

        step.hooked = True  # type: ignore[attr-defined]

    def inspect_step(optimizer: Any) -> None:
        with torch.no_grad():
            for p in optimizer.param_groups[0]["params"]:
                p.sub_(p.grad, alpha=0.1)

    model, optimizer = linear(Helped)
    session = regplug.attach(model, optimizer, ["l2(0.5)"])
    backward(model)
    with pytest.warns(UserWarning, match=r"test_frames\.call_them, .*Helped, was over before"):
        optimizer.step()
    backward(model)
    optimizer.step()  # told once
    assert session.steps == 2
    torch.testing.assert_close(model.weight.detach(), torch.full((1, 2), 2.0 * 0.9**2))


def test_a_caller_that_is_passed_over_by_its_name_no_more_is_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if torch had moved what stands between a compiled caller and a hook."""

    def short_lived(this: object) -> Any:
        return stack.inspect.currentframe()

    monkeypatch.setattr(stack.Caller, "frame", short_lived)
    model, optimizer = linear()
    session = regplug.attach(model, optimizer, ["l2(0.5)"])
    backward(model)
    with pytest.warns(UserWarning, match=r"test_frames\.short_lived, .*session\.step\(lr=…\)"):
        optimizer.step()
    session.detach()


# --- optimizers around this one ----------------------------------------------------------------


class Ascent:
    """Something that an optimizer is made of: its base has no part in torch."""

    base_optimizer: Any

    @torch.no_grad()
    def climb(this) -> Any:  # noqa: N805 (known by no name)
        return this.descend()

    def descend(*these: Any) -> Any:
        return these[0].base_optimizer.step()


class Around(Ascent, Optimizer):
    """As SAM is widely written, with methods of other names."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, settings)
        self.base_optimizer = torch.optim.AdamW(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.climb()


class Bare(Optimizer):
    """Skips the base's ``__init__``, and has no groups."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner

    def step_all(self) -> None:
        self.inner.step()


@pytest.mark.parametrize("method", ["climb", "descend", "step"])
def test_an_optimizer_around_another_is_found_whatever_its_method_is_called(method: str) -> None:
    model, outer = linear(Around, weight_decay=0.25)
    inner, _ = outer.base_optimizer, linear(torch.optim.SGD)
    found: list[Any] = []
    inner.register_step_pre_hook(lambda *_: found.append(set(stack.surrounding(inner))))
    inner.register_step_pre_hook(lambda *_: found.append(set(stack.surrounding(outer))))
    backward(model)
    getattr(outer, method)()
    assert found == [{outer}, {inner}]
    assert not list(stack.surrounding(inner))


@pytest.mark.parametrize("method", ["climb", "descend", "step"])
def test_what_is_lent_stays_out_of_its_state(method: str) -> None:
    model, outer = linear(Around, weight_decay=0.25)
    inner = outer.base_optimizer
    spec = "weight_decay(0.5, where='all', existing='replace')"
    session = regplug.attach(model, inner, [spec])
    backward(model)
    getattr(outer, method)()  # from here on it is known that there is one around
    seen: list[Any] = []

    def look(*_: Any) -> None:
        (group,) = outer.state_dict()["param_groups"]
        seen.append((group["weight_decay"], type(group["weight_decay"]), inner.param_groups[0]))

    inner.register_step_post_hook(look)
    inner.register_step_pre_hook(look)
    backward(model)
    getattr(outer, method)()
    assert [(number, kind) for number, kind, _ in seen] == [(0.25, float)] * 2
    session.detach()
    assert outer.state_dict()["param_groups"][0]["weight_decay"] == 0.25


def test_around_is_who_steps_this_one_and_has_its_groups() -> None:
    model, outer = linear(Around, weight_decay=0.25)
    inner, (_, stranger) = outer.base_optimizer, linear(Around)
    found: list[list[Optimizer]] = []
    inner.register_step_pre_hook(lambda *_: found.append(lent.around(inner)))
    backward(model)
    outer.step()  # three frames of it
    inner.step()
    stranger.base_optimizer, own = inner, stranger.base_optimizer
    stranger.step()  # whose groups are others
    stranger.base_optimizer = own
    assert found == [[outer], [], []]
    assert lent.around(inner) == []


def test_an_optimizer_around_this_one_without_groups_disturbs_nothing() -> None:
    model, inner = linear(torch.optim.AdamW, weight_decay=0.25)
    spec = "weight_decay(0.5, where='all', existing='replace')"
    session = regplug.attach(model, inner, [spec])
    backward(model)
    Bare(inner).step_all()
    assert session.steps == 1
    torch.testing.assert_close(model.weight.detach(), torch.full((1, 2), 2.0 * (1 - 0.1 * 0.5)))


# --- by name -----------------------------------------------------------------------------------


def test_a_stranger_is_no_optimizer_of_torchs_where_wrappers_name_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stranger(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    _, own = linear(torch.optim.SGD)
    _, stranger = linear(Stranger)
    assert step_events.is_torchs(own)
    assert not step_events.is_torchs(stranger)
    for kind in (Stranger, torch.optim.SGD):  # as if torch's wrapper had no functools.wraps
        bare = optim_module.Optimizer.profile_hook_step(kind.step)
        del bare.__wrapped__  # type: ignore[attr-defined]
        bare.__module__, bare.hooked = optim_module.__name__, True  # type: ignore[attr-defined]
        monkeypatch.setattr(kind, "step", bare)
        assert not step_events.is_torchs(kind([nn.Parameter(torch.ones(1))], lr=0.1))


def test_a_leaf_that_is_not_named_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.ones(2, requires_grad=True)
    loss = (weight * 2).sum() + 1.0
    assert wrappers.leaves(loss) == {weight}
    assert wrappers.leaves(torch.ones(1)) == set()
    monkeypatch.setattr(private, "_LEAF", GONE)
    with pytest.raises(UnsupportedError, match=rf"AccumulateGrad\.{GONE}.*delivery='step'"):
        wrappers.leaves(loss)


@pytest.mark.parametrize("moved", [False, True])
def test_every_activation_of_torchs_is_known_by_the_file_they_are_in(
    monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    home = nn.ReLU.__module__
    for kind in vars(nn).values():
        if moved and isinstance(kind, type) and kind.__module__ == home:
            monkeypatch.setattr(kind, "__module__", "torch.nn.elsewhere")
    layers = [nn.ReLU(), nn.GELU(), nn.Tanh(), nn.Sigmoid(), nn.SiLU(), nn.PReLU(), nn.LeakyReLU()]
    layers += [nn.ELU(), nn.SELU(), nn.Mish(), nn.Hardswish(), nn.Softplus(), nn.GLU(), nn.ReLU6()]
    model = nn.Sequential(nn.Linear(2, 2), *layers, nn.Softmax(-1))
    session = regplug.attach(model, plugins=["activity(0.1)"])
    (plugin,) = session.plugins
    assert plugin._modules == [str(k) for k in range(1, len(layers) + 1)]  # type: ignore[attr-defined]
