"""Where kernels for losses and metrics can't serve, or need not: torch's operations do the rest."""

import importlib.util
import math
import warnings

import pytest
import torch
from torch import nn

import regplug
from regplug.backend.blocks import BLOCK
from regplug.delivery.nodes import nodes_of
from regplug.kernels.choice import ALTOGETHER
from regplug_builtins import L1, L2, L2SP, ElasticNet
from tests.helpers.pair import Pair

NUMBA = importlib.util.find_spec("numba") is not None
pytestmark = pytest.mark.skipif(not NUMBA, reason="numba is not installed")
ROWS = ALTOGETHER // 512 + 1


class LogSum(regplug.Penalty):
    """Whose functions are faster in torch than in a loop on a CPU."""

    separable = True

    def value(self, w):
        return torch.log1p(w.abs()).sum()


class Looks(regplug.Penalty):
    """Whose value looks at the elements."""

    separable = True

    def value(self, w):
        return w.square().sum() if bool((w == w).any()) else w.sum()

    def gradient(self, w):
        return 2 * w


class Some(L2):
    """With a companion for a few of its weights alone."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.known = {}

    def companions(self, w):
        return (self.known[id(w)],) if id(w) in self.known else ()

    def value(self, w, c=None):
        return (w if c is None else w - c).square().sum()

    def gradient(self, w, c=None):
        return 2 * (w if c is None else w - c)


def weights(*sizes, dtype=torch.float64):
    return nn.ParameterList(torch.randn(size, dtype=dtype) for size in sizes or [(ROWS, 512), 7])


def zero():
    return torch.zeros((), dtype=torch.float64, requires_grad=True) * 1.0


def ran(choice):
    return [run for run in choice.engine.runs.values() if run is not None]


@pytest.mark.parametrize("other", [LogSum, Looks, Some], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("alone", [True, False])
def test_what_no_kernel_does_torch_does(other, alone):
    model = weights((ROWS, 512), 7, (3, 5))
    odd = other(0.3, where="all", delivery="loss")
    if other is Some:
        odd.known = {id(model[0]): torch.ones_like(model[0])}
    plugins = [odd] if alone else [L1(0.2, where="all", delivery="loss"), odd]
    expected = sum(
        0.3 * odd.value(w, *odd.companions(w)) + (0.0 if alone else 0.2 * w.abs().sum())
        for w in model
    )
    gradients = torch.autograd.grad(expected, list(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with regplug.attach(model, None, plugins, kernels="numba") as session:
            for _ in range(2):
                loss = session.loss(zero())
                loss.backward()
            value = session.metrics()[f"{odd.name}/value"]
    torch.testing.assert_close(loss, expected)
    with torch.no_grad():
        values = [float(odd.value(w, *odd.companions(w))) for w in model]
    assert value == pytest.approx(0.3 * sum(values))
    for w, gradient in zip(model, gradients, strict=True):
        torch.testing.assert_close(w.grad, 2 * gradient)


def test_a_value_that_cannot_be_traced_leaves_the_gradients_kernel_what_it_is():
    model = weights()
    penalty = Looks(0.3, where="all", delivery="step")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with regplug.attach(model, optimizer, [penalty], kernels="numba") as session:
        exact = 0.3 * sum(float(w.detach().square().sum()) for w in model)
        assert session.metrics()["looks/value"] == pytest.approx(exact)
        for w in model:
            w.grad = torch.zeros_like(w)
        optimizer.step()
        assert ran(penalty._formula_kernel.choice)


def test_what_is_no_number_or_infinite_stays_so_and_is_no_reason_to_warn():
    model = weights()
    with torch.no_grad():
        model[0][0, 0], model[0][0, 1], model[1][0] = math.nan, math.inf, -math.inf
    plugins = [L1(0.3, where="1"), L2(0.2, where="all", delivery="loss")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with regplug.attach(model, None, plugins, kernels="numba") as session:
            loss = session.loss(zero())
            loss.backward()
            found = session.metrics()
            assert ran(plugins[1]._formula_kernel.choice)
            assert ran(plugins[1]._formula_kernel.choice.other("value"))
    assert math.isnan(loss.detach())
    assert math.isnan(found["l2/value"])
    assert found["l1/value"] == math.inf
    assert found["l2/zeros"] == 0.0
    assert math.isnan(model[0].grad[0, 0])
    assert model[0].grad[0, 1] == math.inf
    torch.testing.assert_close(model[0].grad[1:], 0.4 * model[0].detach()[1:])


@pytest.mark.parametrize(
    ("operation", "wrong"),
    [("abs", "{0}"), ("abs", "abs({0}) * dtype(1.001)"), ("abs", "abs({0}) + zero / {0}")],
)
def test_a_sum_that_differs_from_torchs_is_thrown_away_with_a_warning(
    operation, wrong, monkeypatch
):
    from regplug.kernels import cpu

    monkeypatch.setitem(cpu.DIALECT.elements, operation, wrong)
    cpu.compiled.cache_clear()
    model = weights()
    with regplug.attach(model, None, [L1(0.3, where="all")], kernels="numba") as session:
        with pytest.warns(UserWarning, match="l1: its kernel for numba is not used"):
            found = session.metrics()["l1/value"]
        assert session.metrics()["l1/value"] == found  # told once
    cpu.compiled.cache_clear()
    assert found == pytest.approx(0.3 * sum(float(w.detach().abs().sum()) for w in model))


def test_elements_that_cancel_out_are_no_reason_to_warn():
    class Signed(regplug.Penalty):
        separable = True

        def value(self, w):
            return w.sum()

    model = nn.ParameterList([torch.randn(ROWS, 256)])
    model[0].data = torch.cat([model[0].data, -model[0].data.flip(0)])
    penalty = Signed(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with regplug.attach(model, None, [penalty], kernels="numba") as session:
            assert abs(session.metrics()["signed/value"]) < 1e-9
            assert ran(penalty._formula_kernel.choice.other("value"))


class Own(nn.Parameter):
    """A tensor of somebody's own kind, whose memory may be of any."""


def test_a_tensor_of_another_kind_leaves_the_others_their_kernel():
    model = weights((ROWS, 512), (40, 30), 7)
    model[1] = Own(model[1].detach())
    assert type(model[1]) is Own
    penalty = L1(0.3, where="all", delivery="loss")
    with regplug.attach(model, None, [penalty], kernels="numba") as session:
        session.loss(zero()).backward()
        value = session.metrics()["l1/value"]
        assert ran(penalty._formula_kernel.choice)
        assert ran(penalty._formula_kernel.choice.other("value"))
    assert value == pytest.approx(0.3 * sum(float(w.detach().abs().sum()) for w in model))
    for w in model:
        torch.testing.assert_close(w.grad, 0.3 * w.detach().sign())


def test_small_nets_go_by_torch():
    model = weights((60, 50), 7)
    plugins = [L1(0.3, where="all", delivery="loss"), ElasticNet(0.1, 0.1, where="all")]
    with regplug.attach(model, None, plugins, kernels="numba") as session:
        session.loss(zero()).backward()
        session.metrics()
        for plugin in plugins:
            choice = plugin._formula_kernel.choice
            assert not ran(choice)
            assert not choice._others or not any(map(ran, choice._others.values()))


def test_what_is_made_at_once_is_bounded():
    model = weights(*[(700, 500)] * 5, (1200, 1000), (3, 3), dtype=torch.float32)
    plugin = L1(0.3, where="all", delivery="loss")
    with regplug.attach(model, None, [plugin], kernels="numba") as session:
        (node,) = nodes_of([plugin._term(session, plugin.strength)])
        pieces = list(node.pieces())
    assert [w for piece in pieces for w in piece.weights] == list(model)
    assert all(piece.size <= BLOCK or len(piece.weights) == 1 for piece in pieces)
    assert len(pieces) == 5


def test_a_graph_through_gradients_is_recorded_as_ever():
    model = weights()
    plugins = [L2(0.3, where="all", delivery="loss"), L2SP(0.2, where="all", delivery="loss")]
    with regplug.attach(model, None, plugins, kernels="numba") as session:
        anchors = [w.detach().clone() for w in model]
        with torch.no_grad():
            for w in model:
                w.mul_(0.5)
        gradients = torch.autograd.grad(session.loss(zero()), list(model), create_graph=True)
        sum(g.square().sum() for g in gradients).backward()
    for w, a in zip(model, anchors, strict=True):
        wide = w.detach()
        torch.testing.assert_close(w.grad, 2 * (0.6 + 0.4) * (0.6 * wide + 0.4 * (wide - a)))


def test_a_closure_returns_the_compiled_value():
    model = weights()
    penalty = ElasticNet(0.1, 0.2, where="all", delivery="step")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def closure():
        for w in model:
            w.grad = torch.zeros_like(w)
        return torch.zeros((), dtype=torch.float64)

    with regplug.attach(model, optimizer, [penalty], kernels="numba"):
        found = optimizer.step(closure)
        assert ran(penalty._formula_kernel.choice.other("value"))
    exact = sum(0.1 * w.detach().abs().sum() + 0.2 * w.detach().square().sum() for w in model)
    torch.testing.assert_close(torch.as_tensor(found, dtype=torch.float64), exact)


def test_a_schedule_compiles_nothing_anew():
    model = weights()
    strength = regplug.schedules.linear(0.1, 0.6, steps=5)
    plugins = [L1(strength, where="all", delivery="loss"), L2(0.2, where="all", delivery="loss")]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with regplug.attach(model, optimizer, plugins, kernels="numba") as session:
        for step in range(4):
            optimizer.zero_grad()
            session.loss(zero()).backward()
            now = 0.1 * (1 + step)
            for w in model:
                wide = w.detach()
                torch.testing.assert_close(w.grad, now * wide.sign() + 0.4 * wide)
            optimizer.step()
        kernel = plugins[0]._formula_kernel
        together = kernel.choice.other(tuple(p._formula_kernel for p in plugins))
        assert len(together.engine.runs) == 1
        assert len(together.other("value").engine.runs) == 1


def sharded(rank, kernels):
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(900, 601, bias=False), nn.Linear(601, 1, bias=False)).double()
    model.append(nn.Linear(1, 900, bias=False).double())
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    specs = ["l1(0.01, delivery='loss')", "l2(0.02, delivery='loss')", "l2_sp(0.03, where='0.*')"]
    losses, metrics = [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    with regplug.attach(model, optimizer, specs, kernels=kernels) as session:
        for _ in range(3):
            x = torch.randn(8, 900, dtype=torch.float64, generator=generator)
            optimizer.zero_grad()
            loss = session.loss(model(x).square().mean())
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            metrics.append(session.metrics())
        first = session.plugins[0]._formula_kernel.choice
        choices = [first, *first._others.values()]
        choices += [other for choice in choices for other in choice._others.values()]
        used = sum(len(ran(choice)) for choice in choices)
    return [p.full_tensor().detach() for p in model.parameters()], losses, metrics, used


def test_shards_are_summed_over_all_ranks(pair: Pair):
    expected = pair.run(sharded, "foreach")
    found = pair.run(sharded, "numba")
    for (own, losses, metrics, used), (other, exact, shown, none) in zip(
        found, expected, strict=True
    ):
        assert none == 0
        assert used >= 2
        assert losses == pytest.approx(exact, rel=1e-12)
        for a, b in zip(metrics, shown, strict=True):
            assert a == pytest.approx(b, rel=1e-12)
        for a, b in zip(own, other, strict=True):
            torch.testing.assert_close(a, b)
    assert found[0][2] == found[1][2]
