"""A rate that moves, in the hands of code that was written for floats."""

import copy
import io
import json
import math
import pickle
import random
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from numbers import Real
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import regplug
from regplug.errors import UnsupportedError
from regplug_builtins import Dropout
from regplug_builtins._rate import Rate

X = torch.linspace(0, 1, 7, dtype=torch.float64)


def seeded(draw: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def drawn(p: Any) -> Any:
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        return draw(p)

    return drawn


USES: dict[str, Callable[[Any], Any]] = {
    # Arithmetic, either way round.
    "p + 1": lambda p: p + 1,
    "1 + p": lambda p: 1 + p,
    "p - 1": lambda p: p - 1,
    "1 - p": lambda p: 1 - p,
    "p * 3": lambda p: p * 3,
    "3 * p": lambda p: 3 * p,
    "p / 3": lambda p: p / 3,
    "1 / p": lambda p: 1 / p,
    "p // 0.03": lambda p: p // 0.03,
    "1 // p": lambda p: 1 // p,
    "p % 0.03": lambda p: p % 0.03,
    "1 % p": lambda p: 1 % p,
    "p ** 2": lambda p: p**2,
    "2 ** p": lambda p: 2**p,
    "divmod": lambda p: (divmod(p, 0.03), divmod(1, p)),
    "-p": lambda p: -p,
    "+p": lambda p: +p,
    "abs": abs,
    "p + p": lambda p: p + p,
    "sum": lambda p: sum([p, p]),
    "p * True": lambda p: p * True,
    # Conversions.
    "int": int,
    "float": float,
    "complex": complex,
    "bool": bool,
    "str": str,
    "repr": repr,
    "round": lambda p: (round(p), round(p, 1), round(p, 3)),
    "floor, ceil, trunc": lambda p: (math.floor(p), math.ceil(p), math.trunc(p)),
    "sqrt": math.sqrt,
    "format": lambda p: (f"{p:.3f}", "%.2f" % p, f"{p:g}"),  # noqa: UP031
    "json of a float": lambda p: json.dumps({"p": float(p)}),
    # Comparisons and containers.
    "chained": lambda p: (0 <= p <= 1, p > 0.0, p == 0.0, p != 0.0, p < 0.2, p >= 0.2),
    "isclose": lambda p: math.isclose(p, 0.123456789),
    "in": lambda p: (p in [0.5, 0.123456789], p in {0.123456789: 1}, p is None, p == "a"),
    "sorted": lambda p: [float(x) for x in sorted([0.3, p, 0.05])],
    "max": lambda p: (float(max(p, 0.05)), float(min(0.5, p))),
    "hash": hash,
    "Real": lambda p: isinstance(p, Real),
    # Beside tensors, with nothing rounded to float32.
    "x * p": lambda p: X * p,
    "p * x": lambda p: p * X,
    "x - p": lambda p: X - p,
    "p - x": lambda p: p - X,
    "x / p": lambda p: X / p,
    "p / (x + 1)": lambda p: p / (X + 1),
    "x ** p": lambda p: X**p,
    "x < p": lambda p: (p > X, p < X, p == X, p != X),
    "x.div(p)": X.div,
    "x.div_(1 - p)": lambda p: X.clone().div_(1 - p),
    "full": lambda p: torch.full((2,), p),
    "clamp": lambda p: torch.clamp(X, max=p),
    "where": lambda p: torch.where(X > 0.5, p, X),
    "lerp": lambda p: torch.lerp(X, X + 1, p),
    "alpha": lambda p: torch.add(X.float(), X.float(), alpha=p),
    # numpy's.
    "np.float64": np.float64,
    "np.asarray": np.asarray,
    "np.array": lambda p: np.array([p, 0.2]),
    "np.exp": np.exp,
    "np.maximum": lambda p: np.maximum(p, 0.05),
    "array * p": lambda p: np.ones(2) * p,
    "p * array": lambda p: p * np.ones(2),
    # Draws.
    "F.dropout": seeded(lambda p: F.dropout(X.expand(50, 7), p)),
    "F.dropout2d": seeded(lambda p: F.dropout2d(X.view(1, 7, 1, 1).expand(9, 7, 2, 2), p)),
    "F.alpha_dropout": seeded(lambda p: F.alpha_dropout(X.expand(50, 7), p, training=True)),
    "attention": seeded(
        lambda p: F.scaled_dot_product_attention(*[X.view(1, 1, 7, 1)] * 3, dropout_p=p)
    ),
    "bernoulli_": seeded(lambda p: X.new_empty(50).bernoulli_(p)),
    "bernoulli_(1 - p)": seeded(lambda p: X.new_empty(50).bernoulli_(1 - p).div_(1 - p)),
    "rand < p": seeded(lambda p: torch.rand(50) < p),
    "random() < p": seeded(lambda p: [random.random() < p for _ in range(50)]),
    "binomial": seeded(lambda p: np.random.binomial(1, p, 50)),
    "distribution": seeded(lambda p: torch.distributions.Bernoulli(p).sample((50,))),
    # Modules made of it.
    "Dropout": lambda p: repr(nn.Dropout(p)),
    "LSTM": lambda p: repr(nn.LSTM(2, 2, 2, dropout=p)),
    "MultiheadAttention": lambda p: float(nn.MultiheadAttention(4, 2, dropout=p).dropout),
}


@pytest.mark.parametrize("use", USES)
def test_a_rate_does_what_the_float_does(use: str) -> None:
    number = 0.123456789
    expected, got = USES[use](number), USES[use](Rate(number))
    assert type(got) is type(expected)
    if isinstance(expected, tuple):
        assert [type(a) for a in got] == [type(a) for a in expected]
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    else:
        assert np.array_equal(np.asarray(got), np.asarray(expected))


def test_a_name_that_is_changed_leaves_the_rate_alone() -> None:
    rate = Rate(0.5)
    p = rate
    p += 0.25
    q = rate
    q *= 2
    assert (p, q) == (0.75, 1.0)
    assert (float(rate), rate.tensor.item()) == (0.5, 0.5)


def test_what_was_worked_out_for_one_rate_is_not_given_for_the_next() -> None:
    keep = lru_cache(lambda p: 1 - p)
    rate = Rate(0.5)
    seen = [keep(rate)]
    for value in (0.25, 0.5):
        rate.set(value)
        seen.append(keep(rate))
    assert seen == [0.5, 0.75, 0.5]


def test_rates_in_a_list_are_tensors_in_a_list() -> None:
    assert torch.equal(torch.stack([Rate(0.5), Rate(0.25)]), torch.tensor([0.5, 0.25]))


class Arithmetic(nn.Module):
    """Writes its own dropout, by way of every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout_p = nn.Linear(2, 2), 0.5

    def forward(self, x: torch.Tensor) -> list[Any]:
        p = self.dropout_p
        keep = 1 - p
        numbers = [keep, p + 1, p - 1, p * 2, 2 * p, p / 2, 1 / keep, keep**-1, 2**p, -p, abs(p)]
        numbers += [p // 0.3, p % 0.3, 1 // p, 1 % p]
        return [self.linear(x) * number for number in numbers]


def test_arithmetic_of_a_moving_rate_is_compiled_once() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = Arithmetic()
    session = regplug.attach(model, plugins=["dropout(linear(0.05, 0.95, steps=10))"])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(3, 2)
    for step in range(10):
        session.load_state_dict({"steps": step, "plugins": {"dropout": {}}})
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
    assert len(torch._dynamo.utils.counters["stats"]) > 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


# Copies, pickles, scripts


class Language(nn.Module):
    """A model of the kind that is saved whole."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)
        self.rnn = nn.LSTM(4, 4, 2, dropout=0.2)
        self.dropout_p = 0.4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.drop(self.rnn(x)[0]), self.dropout_p, self.training)


class Stateful(Language):
    """Has a state of its own making."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "note": "own"}


def rates(model: Any) -> list[Any]:
    return [model.drop.p, model.rnn.dropout, model.dropout_p]


@pytest.fixture(params=[Language, Stateful])
def moving(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    model = request.param()
    with regplug.attach(model, plugins=["dropout(linear(0.1, 0.5, steps=4))"]):
        assert {type(p) for p in rates(model)} == {Rate}
        yield model
    for mine, plain in zip(model.modules(), request.param().modules(), strict=True):
        assert vars(mine).keys() == vars(plain).keys()
    assert rates(model) == [0.3, 0.2, 0.4]


def saved(model: nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


def test_a_model_is_saved_for_the_globals_that_it_has_anyway(moving: nn.Module) -> None:
    """A script that lists what its model consists of can load it as it could without a session."""
    plain = type(moving)()
    names = torch.serialization.get_unsafe_globals_in_checkpoint
    assert names(saved(moving)) == names(saved(plain))
    own = [type(moving), nn.Dropout, nn.LSTM]
    with torch.serialization.safe_globals(own):
        loaded = torch.load(saved(moving), weights_only=True)
    assert rates(loaded) == [0.1] * 3
    assert {type(p) for p in rates(loaded)} == {float}


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "averaged": lambda model: torch.optim.swa_utils.AveragedModel(model).module,
    "twice": lambda model: copy.deepcopy(copy.deepcopy(model)),
    "pickle in Python": lambda model: pickle._loads(pickle._dumps(model)),
    "torch.save": lambda model: torch.load(saved(model), weights_only=False),
    **{
        f"protocol {n}": lambda model, n=n: pickle.loads(pickle.dumps(model, n))
        for n in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_hold_floats_and_nothing_of_the_session(how: str, moving: nn.Module) -> None:
    other = COPIES[how](moving)
    assert rates(other) == [0.1] * 3
    assert {type(p) for p in rates(other)} == {float}
    for mine, plain in zip(other.modules(), type(moving)().modules(), strict=True):
        assert vars(mine).keys() - {"note"} == vars(plain).keys()
    torch.testing.assert_close(other.state_dict(), moving.state_dict())
    assert {type(p) for p in rates(moving)} == {Rate}


def test_a_shallow_copy_holds_a_float(moving: Any) -> None:
    assert type(copy.copy(moving.drop).p) is float


def test_a_parametrized_layer_is_copied_with_floats() -> None:
    """Its class copies its dictionary by itself, and so asks no module for a state."""
    model = nn.Sequential(nn.MultiheadAttention(4, 2, dropout=0.3))
    parametrizations.weight_norm(model[0], "in_proj_weight")
    with regplug.attach(model, plugins=["dropout(linear(0.1, 0.5, steps=4))"]):
        twin = copy.deepcopy(model)
        again = copy.deepcopy(twin)
    for other in (twin, again):
        assert (type(other[0].dropout), other[0].dropout) == (float, 0.1)


def test_two_sessions_leave_nothing_behind_in_either_order() -> None:
    for order in (1, -1):
        model = Language()
        specs = ["dropout(linear(0.1, 0.5, steps=4), where='drop')"]
        specs += ["dropout(linear(0.2, 0.5, steps=4), where='rnn')"]
        sessions = [regplug.attach(model, plugins=[spec]) for spec in specs][::order]
        sessions[0].detach()
        assert {type(p) for p in rates(copy.deepcopy(model))} == {float}
        sessions[1].detach()
        assert all(
            vars(m).keys() == vars(n).keys()
            for m, n in zip(model.modules(), Language().modules(), strict=True)
        )


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_scripting_under_a_moving_rate_says_what_to_do() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3))
    script = partial(torch.jit.script, model)
    session = regplug.attach(model, plugins=["dropout(linear(0.1, 0.5, steps=4))"])
    with pytest.raises(UnsupportedError, match=r"1\.p.*copy\.deepcopy\(model\).*session\.detach"):
        script()
    assert torch.jit.script(copy.deepcopy(model))(torch.ones(5, 2)).shape == (5, 2)
    session.detach()
    assert script()(torch.ones(5, 2)).shape == (5, 2)
    with regplug.attach(model, plugins=[Dropout(0.5)]):  # a rate that stays is a float
        assert script()(torch.ones(5, 2)).shape == (5, 2)
