"""torch.compile: moving rates compile once, and are exact."""

import copy
import io
import pickle
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import regplug
from regplug.schedules import linear
from tests.helpers.compiling import graphs

pytestmark = [
    # Inductor imports a deprecated part of torch; Dynamo looks at .grad of what it resumes with.
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.usefixtures("fresh_compiler"),
]

RATES = linear(0.05, 0.95, steps=11)  # twelve values, where torch gives up after eight floats


class Three(nn.Module):
    """A dropout layer, a functional dropout and an attention that read attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.layer = nn.Dropout(0.5)
        self.dropout_p = 0.5
        self.attention_dropout = 0.5

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        h = self.linear(x)
        heads = h.view(4, 4, -1, 16)
        eye = torch.eye(heads.shape[2]).expand(4, 4, -1, -1)  # so that the output is the weights
        rate = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(heads, heads, eye, dropout_p=rate)
        return self.layer(h), F.dropout(h, self.dropout_p, self.training), attended


def zeros(x: torch.Tensor) -> float:
    return (x == 0).double().mean().item()


@pytest.mark.parametrize("compiled_first", [True, False])
def test_a_moving_rate_compiles_once_in_one_graph(compiled_first: bool) -> None:
    model = Three()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(256, 64)
    if compiled_first:
        compiled = torch.compile(model, fullgraph=True)
        compiled(x)
        before = graphs()
        session = regplug.attach(compiled, optimizer, [f"dropout({RATES!r})"])
    else:
        session = regplug.attach(model, optimizer, [f"dropout({RATES!r})"])
        compiled, before = torch.compile(model, fullgraph=True), graphs()
    for step in range(12):
        outputs = compiled(x)
        asked = RATES(step)
        # Of at least 16384 draws: five standard deviations are 0.02 at most.
        assert [zeros(y) for y in outputs] == pytest.approx([asked] * 3, abs=0.02)
        assert session.metrics()["dropout/rate"] == asked
        sum(y.square().mean() for y in outputs).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert graphs() == before + 1
    model.eval()
    assert [zeros(y) for y in compiled(x)] == [0, 0, 0]
    model.train()
    session.detach()
    assert [model.layer.p, model.dropout_p, model.attention_dropout] == [0.5, 0.5, 0.5]
    assert {type(p) for p in (model.layer.p, model.dropout_p, model.attention_dropout)} == {float}
    assert [zeros(y) for y in compiled(x)] == pytest.approx([0.5] * 3, abs=0.02)


SHAPES = {
    nn.Dropout: (64, 64),
    nn.Dropout1d: (64, 64, 3),
    nn.Dropout2d: (64, 64, 3, 2),
    nn.Dropout3d: (64, 64, 3, 2, 2),
    nn.AlphaDropout: (64, 64),
    nn.FeatureAlphaDropout: (64, 64, 3),
}


def compiled_dropout(kind: type[nn.Module], rate: float, **settings: bool) -> nn.Module:
    """Return a compiled dropout that a session has set to ``rate``, by a schedule that moves."""
    model = nn.Sequential(nn.Linear(2, 2), kind(0.5, **settings))
    regplug.attach(model, plugins=[f"dropout(piecewise({{0: {rate}, 1: 0.5}}))"])
    return torch.compile(model[1], fullgraph=True, backend="eager")


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_a_traced_dropout_is_torchs_own(kind: type[nn.Module], rate: float) -> None:
    x = torch.rand(SHAPES[kind], dtype=torch.float64).add(1).requires_grad_()
    y = compiled_dropout(kind, rate)(x)
    own = kind(rate)(x)
    assert y.dtype == own.dtype
    if "Alpha" in kind.__name__:
        # Kept and dropped are the two lines a·x + b and a·α' + b.
        a = 0.0 if rate == 1 else ((1 - rate) * (1 + rate * 1.7580993408473766**2)) ** -0.5
        b = a * rate * 1.7580993408473766
        dropped = torch.isclose(y, torch.full_like(y, b - a * 1.7580993408473766), atol=1e-6)
        kept_value = a * x + b
    else:
        dropped = y == 0
        kept_value = x / (1 - rate) if rate < 1 else x
    torch.testing.assert_close(y, torch.where(dropped, y, kept_value), rtol=1e-6, atol=1e-6)
    channelwise = kind is not nn.Dropout and kind is not nn.AlphaDropout
    if channelwise:
        flat = dropped.flatten(2)
        assert torch.equal(flat.all(-1), flat.any(-1))
    assert dropped.double().mean().item() == pytest.approx(rate, abs=0.04)
    # The endpoints are those of torch to the bit.
    if rate in (0, 1):
        torch.testing.assert_close(y, own, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.isfinite().all()
    assert torch.equal(gradient != 0, ~dropped) or rate == 1


@pytest.mark.parametrize(
    ("kind", "shape"), [(nn.Dropout1d, (200, 3)), (nn.Dropout3d, (200, 3, 2, 2))]
)
def test_a_traced_dropout_takes_unbatched_inputs(
    kind: type[nn.Module], shape: tuple[int, ...]
) -> None:
    dropped = (compiled_dropout(kind, 0.5)(torch.ones(shape)) == 0).flatten(1)
    assert torch.equal(dropped.all(-1), dropped.any(-1))
    assert 0.3 < dropped.double().mean() < 0.7


def test_a_traced_dropout_works_in_place_where_the_layer_does() -> None:
    x = torch.ones(50, 50)
    y = compiled_dropout(nn.Dropout, 0.5, inplace=True)(x)
    assert torch.equal(x, y)
    assert set(x.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": "bool"},
        {"attn_mask": "float"},
        {"enable_gqa": True},
    ],
    ids=str,
)
def test_a_traced_attention_is_torchs_own(settings: dict[str, object]) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.attention_dropout = nn.Linear(1, 1), 0.5

        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **more: object):
            return F.scaled_dot_product_attention(q, k, v, dropout_p=self.attention_dropout, **more)

    model = Attention()
    regplug.attach(model, plugins=["dropout(piecewise({0: 0.0, 1: 0.5}))"])
    heads = 2 if "enable_gqa" in settings else 4
    q, k, v = (torch.randn(3, h, 5, 8, dtype=torch.float64) for h in (4, heads, heads))
    masks = {"bool": torch.rand(5, 5) > 0.3, "float": torch.randn(5, 5, dtype=torch.float64)}
    masks["bool"][:, 0] = True  # a row that attends to nothing is NaN
    if "attn_mask" in settings:
        settings = {"attn_mask": masks[settings["attn_mask"]]}
    traced = torch.compile(model, fullgraph=True, backend="eager")(q, k, v, **settings)
    torch.testing.assert_close(traced, F.scaled_dot_product_attention(q, k, v, **settings))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 1, dropout=0.5, batch_first=True)
        self.recurrent = nn.LSTM(16, 16, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.attention(x, x, x, average_attn_weights=False)[1], self.recurrent(x)[0]


def test_what_torch_cannot_compile_is_said_and_still_exact() -> None:
    model = Attending()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session = regplug.attach(model, optimizer, [f"dropout({RATES!r})"])
    described = session.describe()
    assert "breaks the graph here" in described
    assert "attention.dropout" in described
    assert "recurrent.dropout" in described
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(8, 48, 16)
    seen = []
    for step in range(12):
        weights, _ = compiled(x)
        assert zeros(weights) == pytest.approx(RATES(step), abs=0.02)
        (weights.sum() * 0 + model.recurrent.weight_ih_l0.sum()).backward()
        optimizer.step()
        seen.append(graphs())
    assert max(seen) < torch._dynamo.config.recompile_limit
    assert seen[1:] == [seen[1]] * 11  # nothing is compiled anew as the rate moves


def test_a_branch_on_the_rate_is_compiled_once() -> None:
    """Stochastic depth as timm writes it asks for rate 0 first, which breaks the graph."""

    class Path(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.drop_prob = nn.Linear(4, 4), 0.5

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.linear(x)
            if self.drop_prob == 0.0 or not self.training:
                return x
            keep = 1 - self.drop_prob
            mask = x.new_empty((x.shape[0], 1)).bernoulli_(keep)
            if keep > 0.0:
                mask.div_(keep)
            return x * mask

    model = Path()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    regplug.attach(model, optimizer, [f"dropout({RATES!r})"])
    compiled = torch.compile(model, backend="eager")
    counted = []
    for step in range(12):
        y = compiled(torch.randn(20_000, 4))
        assert zeros(y) == pytest.approx(RATES(step), abs=0.02)
        y.sum().backward()
        optimizer.step()
        counted.append(graphs())
    assert counted == [counted[0]] * 12


# The tensor in the float's place


@pytest.fixture
def scheduled() -> Iterator[nn.Module]:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.LSTM(4, 4, 2, dropout=0.2))
    with regplug.attach(model, plugins=["dropout(linear(0.1, 0.5, steps=4))"]):
        yield model


def test_a_moving_rate_looks_like_a_float(scheduled: nn.Module) -> None:
    p = scheduled[1].p
    assert isinstance(p, torch.Tensor)
    assert float(p) == p.item() == 0.1
    assert p == 0.1
    assert p != 0.2
    assert 0.0 < p < 1.0
    assert 0.1 <= p <= 0.1
    assert not p > 0.1
    assert not p >= 0.2
    assert p
    assert 1 - p == 0.9
    assert repr(p) == str(p) == f"{p}" == "0.1"
    assert repr(scheduled[1]) == "Dropout(p=0.1, inplace=False)"
    assert "dropout=0.1" in repr(scheduled[2])


def test_a_moving_rate_is_no_part_of_the_models_state(scheduled: nn.Module) -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.LSTM(4, 4, 2, dropout=0.2))
    assert list(scheduled.state_dict()) == list(plain.state_dict())
    assert list(scheduled.buffers()) == []
    assert len(list(scheduled.parameters())) == len(list(plain.parameters()))


def test_copies_of_a_model_hold_floats(scheduled: nn.Module) -> None:
    saved = io.BytesIO()
    torch.save(scheduled, saved)
    saved.seek(0)
    for other in (
        copy.deepcopy(scheduled),
        pickle.loads(pickle.dumps(scheduled)),
        torch.load(saved, weights_only=False),
    ):
        assert (other[1].p, other[2].dropout) == (0.1, 0.1)
        assert type(other[1].p) is type(other[2].dropout) is float
    shallow = copy.copy(scheduled[1])
    assert float(shallow.p) == 0.1


def test_a_rate_that_never_moves_stays_a_float() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3))
    with regplug.attach(model, plugins=["dropout(0.2)"]) as session:
        assert type(model[1].p) is float
        assert model[1].p == 0.2
        assert "torch.compile" not in session.describe()


def test_two_plugins_of_one_rate_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3))
    with pytest.raises(regplug.errors.SpecError, match=r"1\.p is set by another plugin"):
        regplug.attach(
            model,
            plugins=["dropout(linear(0, 1, steps=3))", "dropout(linear(0, 1, steps=3), name='b')"],
        )
    assert model[1].p == 0.3
