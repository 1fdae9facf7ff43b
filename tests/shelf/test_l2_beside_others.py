"""l2 is left to the optimizer only where nobody could tell: beside other plugins and hooks."""

import copy
import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import regplug
from regplug_builtins import L2, GradientNoise
from tests.shelf.left_to_torch import DECAY, SPEC, backward, close, network, train


def norm(model: nn.Module) -> float:
    return float(sum(p.grad.square().sum() for p in model.parameters()) ** 0.5)


class Sees(regplug.Plugin):
    """Watches the gradients, in one event."""

    changes_weights = False

    def __init__(self) -> None:
        self.seen: list[float] = []

    def see(self, session: regplug.Session) -> None:
        self.seen.append(norm(session.model))


class SeesGradients(Sees):
    @regplug.hookimpl
    def on_gradients(self, session: regplug.Session) -> None:
        self.see(session)


class SeesBefore(Sees):
    @regplug.hookimpl
    def before_step(self, session: regplug.Session) -> None:
        self.see(session)


class SeesAfter(Sees):
    @regplug.hookimpl
    def after_step(self, session: regplug.Session) -> None:
        self.see(session)


class Clips(regplug.Plugin):
    order_matters = True

    @regplug.hookimpl
    def on_gradients(self, session: regplug.Session) -> None:
        nn.utils.clip_grad_norm_(session.model.parameters(), 0.1)


class PenaltyThatClips(regplug.Penalty):
    """A stranger's, whose class has the word of Penalty, and a hook of its own."""

    separable = True

    def __init__(self) -> None:
        super().__init__(0.1, delivery="step")

    def value(self, w: torch.Tensor) -> torch.Tensor:
        return w.abs().sum()

    @regplug.hookimpl
    def on_gradients(self, session: regplug.Session) -> None:
        nn.utils.clip_grad_norm_(session.model.parameters(), 0.1)
        super().on_gradients(session)


class NoiseThatClips(GradientNoise):
    """A stranger's, with a hook of its own."""

    @regplug.hookimpl
    def on_gradients(self, session: regplug.Session) -> None:
        nn.utils.clip_grad_norm_(session.model.parameters(), 0.1)


def both_ways(attach: Any, make: Any = None) -> tuple[list[Any], list[bool]]:
    """Return what is trained with and without handing over, and whether it was handed."""
    trained, handed = [], []
    for handover in (True, False):
        model = network()
        make = make or (lambda p: torch.optim.Adam(p, lr=0.05))
        optimizer = make(model.parameters())
        seen = attach(model, optimizer, handover)
        weights = train(model, optimizer)
        trained.append((weights, seen))
        texts = [s.describe() for s in regplug.sessions.on(optimizer)]
        handed.append(any(f"the update of {type(optimizer).__name__}" in text for text in texts))
        assert optimizer.param_groups[0]["weight_decay"] == 0
        assert type(optimizer.param_groups[0]["weight_decay"]) is not regplug.lent.Lent
    return trained, handed


@pytest.mark.parametrize(
    ("plugins", "handed"),
    [
        ([SPEC, SeesGradients], False),
        ([SeesGradients, SPEC], True),
        ([SPEC, SeesBefore], False),
        ([SeesBefore, SPEC], False),
        ([SPEC, SeesAfter], False),
        ([SeesAfter, SPEC], False),
        ([SPEC, Clips], False),
        ([Clips, SPEC], True),
        ([SPEC, PenaltyThatClips], False),
        ([SPEC, NoiseThatClips], False),
        ([SPEC, "gradient_noise(0.1)"], True),
        ([SPEC, "l1(0.1, delivery='step')"], True),
        ([SPEC, "l1(0.1, delivery='proximal')"], True),
        ([SPEC, "l2_sp(0.1, delivery='step')"], True),
        ([SPEC, "non_negative"], True),
        ([SPEC, "max_norm(0.5)"], True),
        ([SPEC, "weight_decay(0.5)"], False),
        (["weight_decay(0.5)", SPEC], False),
        ([SPEC, "weight_decay(0.5, cautious=True)"], False),
        ([SPEC, "l2(0.1, where='all', delivery='step', name='more')"], True),
    ],
    ids=lambda value: (
        " ".join(getattr(p, "__name__", p) for p in value) if isinstance(value, list) else None
    ),
)
@pytest.mark.parametrize("where", ["one session", "two sessions", "two sessions, reversed"])
def test_beside_another_plugin(plugins: list[Any], handed: bool, where: str) -> None:
    def attach(model: nn.Module, optimizer: Any, handover: bool) -> Any:
        made = [p if isinstance(p, str) else p() for p in plugins]
        if where == "one session":
            regplug.attach(model, optimizer, made, handover=handover)
        else:
            for i, plugin in enumerate(made if where == "two sessions" else made[::-1]):
                regplug.attach(model, optimizer, [plugin], name=str(i), handover=handover)
        return [p.seen for p in made if isinstance(p, Sees)]

    (ours, theirs), found = both_ways(attach)
    close(ours[0], theirs[0], 1e-9)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        assert mine == pytest.approx(other, rel=1e-9)
    if where == "one session":
        assert found == [handed, False]
    assert found[1] is False


def test_adadeltas_proximal_step_is_computed_from_the_gradient() -> None:
    def attach(model: nn.Module, optimizer: Any, handover: bool) -> None:
        plugins = [SPEC, "l1(0.1, delivery='proximal')"]
        regplug.attach(model, optimizer, plugins, handover=handover)

    (ours, theirs), found = both_ways(attach, lambda p: torch.optim.Adadelta(p, lr=0.5))
    close(ours[0], theirs[0])
    assert found == [False, False]


def test_a_plugin_that_comes_later_is_shown_the_gradient_and_then_no_one() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    first = regplug.attach(model, optimizer, [SPEC])
    assert "SGD itself" in first.describe()
    sees = SeesGradients()
    backward(model)
    alone = norm(model)
    with regplug.attach(model, optimizer, [sees], name="sees"):
        assert "SGD itself" not in first.describe()
        optimizer.step()
        assert sees.seen[0] != pytest.approx(alone)
    assert "SGD itself" in first.describe()


def test_a_subclass_or_an_instance_with_a_formula_of_its_own_is_no_l2() -> None:
    class Thrice(L2):
        def gradient(self, w: torch.Tensor) -> torch.Tensor:
            return 3 * w

    class Watches(L2):
        @regplug.hookimpl
        def on_gradients(self, session: regplug.Session) -> None:
            super().on_gradients(session)

    l2 = L2(0.25, where="all", delivery="step")
    l2.value = lambda w: 2 * w.square().sum()
    for plugin, multiple in (
        (Thrice(0.25, where="all", delivery="step"), 3 * 0.25),
        (Watches(0.25, where="all", delivery="step"), 2 * 0.25),
        (l2, 4 * 0.25),
    ):
        model = network()
        twin = copy.deepcopy(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        session = regplug.attach(model, optimizer, [plugin])
        assert "itself" not in session.describe()
        found = train(model, optimizer)
        by_torch = torch.optim.SGD(twin.parameters(), lr=0.05, weight_decay=multiple)
        close(found, train(twin, by_torch))


# --- parameters -------------------------------------------------------------------------------


def test_what_has_no_gradient_or_is_frozen_stays_as_it_is() -> None:
    def attach(model: nn.Module, optimizer: Any, handover: bool) -> None:
        regplug.attach(model, optimizer, [SPEC], handover=handover)

    for freeze, handed in (("before", True), ("left with a gradient", False)):
        results = []
        for handover in (True, False):
            model = network()
            if freeze == "before":
                model[0].weight.requires_grad_(False)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
            attach(model, optimizer, handover)
            backward(model)
            before = model[0].weight.detach().clone()
            model[0].weight.requires_grad_(False)
            if freeze != "before":
                model[0].weight.grad.zero_()
            decays: list[float] = []
            model[2].bias.grad = None
            bias = model[2].bias.detach().clone()
            shown = model[2].weight.grad.clone()
            optimizer.step()
            decays.append(float((model[2].weight.grad - shown).abs().sum()))
            assert (decays == [0]) == (handover and handed)
            assert torch.equal(model[0].weight, before)
            assert torch.equal(model[2].bias, bias)
            results.append([p.detach() for p in model.parameters()])
        close(*results)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adagrad])
def test_a_sparse_gradient_is_refused_as_ever(make: Any) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(5, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.embedding(x, self.weight, sparse=True)

    model = Rows()
    optimizer = make(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, [SPEC])
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(regplug.errors.UnsupportedError, match="sparse"):
        optimizer.step()


def test_a_decay_that_is_a_tensor_is_left_alone() -> None:
    model = network()
    decay = torch.tensor(0.0, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=decay, foreach=False)
    regplug.attach(model, optimizer, [SPEC])
    twin = network()
    found = train(model, optimizer)
    close(found, train(twin, torch.optim.SGD(twin.parameters(), lr=0.05, weight_decay=DECAY)))
    assert optimizer.param_groups[0]["weight_decay"] is decay


# --- steps that go wrong ----------------------------------------------------------------------


def test_two_sessions_give_back_in_any_order_even_where_decay_is_set_meanwhile() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.125)
    for name in ("one", "two", "three"):
        regplug.attach(model, optimizer, [SPEC], name=name)
    twin = network()
    own = torch.optim.SGD(twin.parameters(), lr=0.05, weight_decay=0.125 + 3 * DECAY)
    close(train(model, optimizer), train(twin, own))
    assert optimizer.param_groups[0]["weight_decay"] == 0.125
    assert type(optimizer.param_groups[0]["weight_decay"]) is float
    optimizer.param_groups[0]["weight_decay"] = 0.25
    own.param_groups[0]["weight_decay"] = 0.25 + 3 * DECAY
    close(train(model, optimizer), train(twin, own))
    assert optimizer.param_groups[0]["weight_decay"] == 0.25


@pytest.mark.parametrize("then", ["strength 0", "as it was"])
def test_what_an_update_that_failed_had_borrowed_does_not_act_in_the_next(then: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    session = regplug.attach(model, optimizer, [SPEC])

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    update, type(optimizer)._init_group = type(optimizer)._init_group, fail
    try:
        backward(model)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    finally:
        type(optimizer)._init_group = update
    assert optimizer.state_dict()["param_groups"][0]["weight_decay"] == 0
    if then == "strength 0":
        session.plugins[0].strength = 0
    twin = copy.deepcopy(model)
    decay = 0 if then == "strength 0" else DECAY
    found = train(model, optimizer)
    close(found, train(twin, torch.optim.SGD(twin.parameters(), lr=0.05, weight_decay=decay)))
    assert optimizer.param_groups[0]["weight_decay"] == 0


def test_nothing_is_left_after_detach_and_nothing_is_kept_alive() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    session = regplug.attach(model, optimizer, [SPEC])
    train(model, optimizer)
    session.detach()
    assert "SGD itself" in session.describe()
    twin = copy.deepcopy(model)
    close(train(model, optimizer), train(twin, torch.optim.SGD(twin.parameters(), lr=0.05)))
    held = weakref.ref(optimizer)
    del optimizer
    session = None
    gc.collect()
    assert held() is None


def test_a_loaded_state_goes_on() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    regplug.attach(model, optimizer, [SPEC])
    train(model, optimizer, steps=2)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(state)
    twin = copy.deepcopy(model)
    own = torch.optim.Adam(twin.parameters(), lr=0.05)
    own.load_state_dict(copy.deepcopy(state))
    own.param_groups[0]["weight_decay"] = DECAY
    close(train(model, optimizer), train(twin, own))


@pytest.mark.parametrize("strength", ["0.25", "linear(0.25, 0, steps=12)"])
def test_a_compiled_update_is_not_compiled_anew_at_each_step(strength: str) -> None:
    trained = []
    for handover in (True, False):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        spec = f"l2({strength}, where='all', delivery='step')"
        regplug.attach(model, optimizer, [spec], handover=handover)
        step = torch.compile(optimizer.step, backend="eager")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for i in range(12):
                optimizer.zero_grad()
                backward(model, i)
                step()
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 5
        trained.append([p.detach() for p in model.parameters()])
        torch._dynamo.reset()
    close(*trained)
