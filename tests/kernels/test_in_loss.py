"""Penalties in the loss, and the figures of metrics, by compiled kernels: against closed forms."""

import importlib.util
import math
import warnings

import pytest
import torch
from torch import nn

import regplug
from regplug.delivery.nodes import nodes_of
from regplug.delivery.together import choice_of, made_gradients
from regplug.kernels.choice import ALTOGETHER
from regplug.kernels.engine import Engine
from regplug_builtins import L1, L2, L2SP

NUMBA = importlib.util.find_spec("numba") is not None
INTERPRETED = not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None

needs_numba = pytest.mark.skipif(not NUMBA, reason="numba is not installed")
needs_triton = pytest.mark.skipif(not INTERPRETED, reason="no Triton, or it is not interpreted")
COMPILERS = [
    pytest.param("numba", marks=needs_numba),
    pytest.param("triton", marks=needs_triton),
]
KINDS = [
    pytest.param("numba", torch.float64, marks=needs_numba),
    pytest.param("numba", torch.float32, marks=needs_numba),
    pytest.param("triton", torch.float64, marks=needs_triton),
    pytest.param("triton", torch.float32, marks=needs_triton),
    pytest.param("triton", torch.float16, marks=needs_triton),
    pytest.param("triton", torch.bfloat16, marks=needs_triton),
]
UPSTREAM = 0.5


class Many(nn.Module):
    """Weights of every layout; enough for numba to be asked, few for Triton's interpreter."""

    def __init__(self, kernels: str, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        rows = ALTOGETHER // 300 + 1 if kernels == "numba" else 7
        self.a = nn.ParameterList(
            [
                drawn(rows, 300),
                drawn(),
                drawn(0, 4),
                drawn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last),
                drawn(31, 17).t(),
                drawn(30, 80)[:, ::2],
            ]
        )
        self.b = nn.ParameterList(
            [drawn(rows, 300), drawn(1025)[1:], torch.zeros(9, 5, dtype=dtype), drawn(8, 9)]
        )
        self.b[3].requires_grad_(False)

    def optimizer(self) -> torch.optim.Optimizer:
        groups = [
            {"params": list(self.a)},
            {"params": list(self.b), "maximize": True},
        ]
        return torch.optim.SGD(groups, lr=0.1)


def penalties(delivery="loss"):
    """Three with overlapping selections, one with companions."""
    return [
        L1(0.3, where="all", delivery=delivery),
        L2(0.2, where="a.*", delivery=delivery),
        L2SP(0.1, where=["a.0", "a.3", "b.*"], delivery=delivery),
    ]


def closed_forms(model, anchors):
    """Return Σ sign·λ·value and each weight's gradient of it, in float64."""
    total, gradients = [], {}
    for name, w in model.named_parameters():
        if not w.requires_grad:
            continue
        wide, sign = w.detach().double(), -1.0 if name.startswith("b") else 1.0
        parts, found = [0.3 * wide.abs().sum()], 0.3 * wide.sign()
        if name.startswith("a"):
            parts.append(0.2 * wide.square().sum())
            found = found + 0.4 * wide
        if name in ("a.0", "a.3") or name.startswith("b"):
            away = wide - anchors[name].double()
            parts.append(0.1 * away.square().sum())
            found = found + 0.2 * away
        total.append(sign * sum(map(float, parts)))
        gradients[name] = sign * found * UPSTREAM
    return math.fsum(total), gradients


def moved(model):
    """Change the weights, so that they are away from their anchors; return where they were."""
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for w in model.parameters():
            w.add_(torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w.dtype) / 4)
        model.a[0][0, :7] = 0.0
    return before


def ran(choice):
    return [run for run in choice.engine.runs.values() if run is not None]


def in_loss(kernels, dtype, size=None):
    """Return the model, where it was, its loss event's value and what ran; gradients are there."""
    model, plugins = Many(size or kernels, dtype), penalties()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a kernel that is not used says so
        with regplug.attach(model, model.optimizer(), plugins, kernels=kernels) as session:
            before = moved(model)
            loss = session.loss(torch.zeros((), dtype=torch.float64, requires_grad=True) * 1.0)
            (loss * UPSTREAM).backward()
            nodes = nodes_of([p._term(session, p.strength) for p in plugins])
            choices = [node.choice for node in nodes if node.choice is not None]
            runs = [ran(choice) + ran(choice.other("value")) for choice in choices]
    return model, before, float(loss.detach()), runs


@pytest.mark.parametrize(("kernels", "dtype"), KINDS)
def test_value_and_gradients_of_several_penalties_are_the_closed_forms(kernels, dtype):
    model, before, value, runs = in_loss(kernels, dtype)
    expected, gradients = closed_forms(model, before)
    assert runs
    assert all(len(some) >= 2 for some in runs[:2])  # a gradient's kernel and a value's
    halves = dtype in (torch.float16, torch.bfloat16)
    scale = sum(float(w.detach().double().abs().sum()) for w in model.parameters())
    assert abs(value - expected) <= scale * (1e-13 if dtype == torch.float64 else 1e-7)
    eps = torch.finfo(dtype).eps
    for name, w in model.named_parameters():
        if not w.requires_grad:
            assert w.grad is None
            continue
        assert w.grad.dtype == dtype
        assert w.grad.stride() == w.stride() or not w.is_contiguous()
        # Halves are computed with in float32, and rounded once.
        atol = 1e-7 if halves else 4 * eps
        torch.testing.assert_close(
            w.grad.double(), gradients[name], rtol=eps if halves else 8 * eps, atol=atol
        )


@pytest.mark.parametrize(("kernels", "dtype"), KINDS[:4])
def test_they_are_those_of_the_foreach_path(kernels, dtype):
    expected, _, value, none = in_loss("foreach", dtype, kernels)
    model, _, own, runs = in_loss(kernels, dtype)
    assert not any(none)
    assert any(runs)
    assert own == pytest.approx(value, rel=1e-6 if dtype == torch.float32 else 1e-13)
    for w, other in zip(model.parameters(), expected.parameters(), strict=True):
        if w.requires_grad:
            torch.testing.assert_close(w.grad, other.grad, rtol=1e-6, atol=1e-7)


@needs_numba
def test_float32_sums_are_nearer_to_float64_than_torchs():
    torch.manual_seed(3)
    model = nn.ParameterList(torch.randn(700, 500) * 10.0**i for i in (-3, 0, 1))
    exact = math.fsum(math.fsum(w.detach().double().abs().flatten().tolist()) for w in model)
    found = {}
    for kernels in ("foreach", "numba"):
        with regplug.attach(model, plugins=[L1(1.0, where="all")], kernels=kernels) as session:
            found[kernels] = abs(session.metrics()["l1/value"] - exact) / exact
    assert found["numba"] <= found["foreach"]
    assert found["numba"] < 1e-12


@pytest.mark.parametrize("kernels", COMPILERS)
def test_all_penalties_of_all_weights_alike_take_one_launch_each_way(kernels, monkeypatch):
    model = nn.ParameterList(torch.randn(60, 50) for _ in range(200 if kernels == "numba" else 4))
    model.append(torch.randn(2, 2, dtype=torch.float64))
    calls = []
    run = Engine._run

    def counted(self, table, columns, scalars, formula, target, compare):
        done = run(self, table, columns, scalars, formula, target, compare)
        if done is not None:
            calls.append((target, len(columns[0])))
        return done

    monkeypatch.setattr(Engine, "_run", counted)
    plugins = ["l1(0.1, where='all')", "l2(0.2, where='all')", "elastic_net(0.1, 0.1, where='all')"]
    with regplug.attach(model, None, plugins, kernels=kernels) as session:
        for plugin in session.plugins:
            assert plugin.delivery == "auto"
        session.loss(torch.zeros((), requires_grad=True) * 1.0).backward()
    count = len(model) - 1
    assert sorted(call[1] for call in calls if call[0] is None)[-1:] == [count]
    assert sorted(call[1] for call in calls if call[0] == 0)[-1:] == [count]
    assert len(calls) == (2 if kernels == "numba" else 4)  # one tensor of float64 does not pay


@pytest.mark.parametrize("kernels", COMPILERS)
def test_metrics_are_sums_over_all_tensors(kernels):
    model = Many(kernels)
    plugins = [*penalties(), "non_negative(where='b.*')"]
    with regplug.attach(model, model.optimizer(), plugins, kernels=kernels) as session:
        before = moved(model)
        with torch.no_grad():
            model.b[2].fill_(-0.0)
            model.b[1][3:9] = 0.0
        found = session.metrics()
        counting = {p.name: p._formula_kernel.choice for p in session.plugins[:3]}
        assert all(ran(choice.other("value")) for choice in counting.values())
    every = {name: w for name, w in model.named_parameters() if w.requires_grad}
    wide = {name: w.detach().double() for name, w in every.items()}

    def share(names):
        of = [wide[name] for name in names]
        return sum(int((w == 0).sum()) for w in of) / sum(w.numel() for w in of)

    a, b = ([n for n in every if n.startswith(letter)] for letter in "ab")
    sp = ["a.0", "a.3", *b]
    assert found["l1/value"] == pytest.approx(0.3 * sum(w.abs().sum() for w in wide.values()))
    assert found["l2/value"] == pytest.approx(0.2 * sum(wide[n].square().sum() for n in a))
    away = sum((wide[n] - before[n]).square().sum() for n in sp)
    assert found["l2_sp/value"] == pytest.approx(0.1 * float(away), rel=1e-12)
    assert found["l1/zeros"] == pytest.approx(share(every), rel=1e-12)
    assert found["l2/zeros"] == pytest.approx(share(a), rel=1e-12)
    assert found["non_negative/zeros"] == pytest.approx(share(b), rel=1e-12)
    assert share(b) > share(a) > 0


@needs_numba
def test_gradients_are_of_what_was_saved_where_hooks_are_at_work():
    model = Many("numba")
    with regplug.attach(model, model.optimizer(), penalties(), kernels="numba") as session:
        before = moved(model)
        expected = closed_forms(model, before)[1]
        with torch.autograd.graph.saved_tensors_hooks(lambda w: w.clone(), lambda w: w):
            loss = session.loss(torch.zeros((), dtype=torch.float64, requires_grad=True) * 1.0)
        with torch.no_grad():
            for w in model.parameters():
                w.mul_(-7.0)
        (loss * UPSTREAM).backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


@pytest.mark.parametrize("kernels", COMPILERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_upstream_may_be_a_tensor_that_is_not_waited_for(kernels, dtype):
    """As on a GPU; of another dtype than the weights', too."""
    size = 90_000 if kernels == "numba" else 3_000
    weights = [nn.Parameter(torch.randn(size, dtype=dtype)), nn.Parameter(torch.randn(5).to(dtype))]
    model = nn.ParameterList(weights)
    plugins = [L1(0.3, where="all", delivery="loss"), L2(0.2, where="all", delivery="loss")]
    with regplug.attach(model, None, plugins, kernels=kernels), torch.no_grad():
        shares = [(p._formula_kernel, 2.0) for p in plugins]
        choice = choice_of(shares)
        scale = torch.tensor(0.1, dtype=torch.float32)
        found, left = made_gradients(choice, shares, weights, weights, scale)
        assert list(left) == []
        assert ran(choice)
    for w, gradient in zip(weights, found, strict=True):
        wide = w.detach().double()
        expected = float(scale) * 2.0 * (wide.sign() + 2 * wide)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(gradient.double(), expected, rtol=8 * eps, atol=4 * eps)


@pytest.mark.parametrize("kernels", COMPILERS)
def test_nothing_is_made_on_the_default_device(kernels):
    torch.set_default_device("meta")
    try:
        with torch.device("cpu"):
            model = Many(kernels)
            loss = torch.zeros((), dtype=torch.float64, requires_grad=True) * 1.0
        plugins = [L1(0.3, where="all", delivery="loss")]
        with regplug.attach(model, plugins=plugins, kernels=kernels) as session:
            session.loss(loss).backward()
            zeros = session.metrics()["l1/zeros"]
            assert ran(plugins[0]._formula_kernel.choice)
    finally:
        torch.set_default_device(None)
    assert zeros == pytest.approx(45 / (sum(w.numel() for w in model.parameters()) - 72))
    torch.testing.assert_close(model.a[0].grad, 0.3 * model.a[0].detach().sign())
