"""Kernels of rows and columns against closed forms in float64: Triton's, which is interpreted."""

import importlib.util

import pytest
import torch
from torch import nn

import regplug
from regplug.backend.update_rules import update_rule
from regplug.delivery import compiled
from regplug.kernels import cuda, row_cuda, row_tables
from regplug_builtins import GroupLasso, MaxNorm, UnitNorm
from tests.kernels.row_cases import F64, OPTIMIZERS, Layers, Least, Ridges, check_by, trained

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or importlib.util.find_spec("triton") is None,
    reason="no Triton, or it is not interpreted",
)

DTYPES = [torch.float32, F64, torch.float16, torch.bfloat16]


def check(make, optimizer, dtype=torch.float32):
    check_by("triton", make, optimizer, dtype)


@pytest.mark.parametrize("groups", ["rows", "columns"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_constraints(groups, dtype):
    for make in (lambda: MaxNorm(1.5, groups=groups), lambda: UnitNorm(groups=groups)):
        check(make, OPTIMIZERS["SGD"], dtype)


@pytest.mark.parametrize("groups", ["rows", "columns"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_of_a_group_lasso(groups, dtype):
    check(lambda: GroupLasso(0.2, groups=groups, delivery="step"), OPTIMIZERS["SGD"], dtype)


@pytest.mark.parametrize(
    ("groups", "optimizer"),
    [*(("rows", name) for name in OPTIMIZERS), ("columns", "SGD"), ("columns", "Adam")],
)
def test_the_proximal_operator_under_every_kind_of_step(groups, optimizer):
    def make():
        return GroupLasso(0.3, groups=groups, delivery="proximal")

    check(make, OPTIMIZERS[optimizer])


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_the_proximal_operator_in_other_dtypes(dtype):
    check(lambda: GroupLasso(0.3, delivery="proximal"), OPTIMIZERS["Adam"], dtype)


def test_groups_do_become_zero():
    found, _ = trained(GroupLasso(30.0, delivery="proximal"), OPTIMIZERS["Adam"], "triton")
    rows_of_filters = found[4].flatten(1).abs().sum(1)
    assert (rows_of_filters == 0).any()


def test_all_rows_of_all_weights_are_one_launch_whatever_layer_they_are_of(monkeypatch):
    launched = []
    numbers = row_tables.RowTable.numbers

    def counted(self, given):
        launched.append(self.shapes.shape[1])
        return numbers(self, given)

    monkeypatch.setattr(row_tables.RowTable, "numbers", counted)
    trained(MaxNorm(1.0), OPTIMIZERS["SGD"], "triton", steps=1)
    verified = len(launched) - 1  # each new kind of weight is tried on two samples before
    assert launched[:verified] == [1] * verified
    assert launched[verified] == 7  # but for one with no gradient, and one whose rows are no view
    launched.clear()
    model = Layers(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, ["max_norm(1)"], kernels="triton"):
        for step in range(3):
            for w in model.parameters():
                w.grad = torch.ones_like(w)
            launched.clear()
            optimizer.step()
            assert step == 0 or launched == [8]


def test_a_schedule_compiles_nothing_anew_and_is_followed(monkeypatch):
    made = []
    source = row_cuda.source_of
    monkeypatch.setattr(row_cuda, "source_of", lambda *given: made.append(given) or source(*given))
    model = nn.Linear(7, 3, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bound = regplug.schedules.linear(1.0, 0.1, steps=9)
    counts = []
    with regplug.attach(model, optimizer, [MaxNorm(bound)], kernels="triton"):
        for step in range(5):
            model.weight.data.fill_(1.0)
            model.weight.grad = torch.zeros_like(model.weight)
            optimizer.step()
            length = model.weight.detach().norm(dim=1)
            torch.testing.assert_close(length, torch.full((3,), bound(step)))
            counts.append(len(made))
    assert counts == [counts[0]] * 5


def test_weights_that_move_in_memory_are_followed():
    model = nn.Linear(7, 3, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, ["unit_norm()"], kernels="triton"):
        for how in (torch.clone, lambda w: w.t().contiguous().t(), lambda w: w.repeat(1, 1)):
            model.weight.data = how(torch.randn(3, 7))
            model.weight.grad = torch.zeros_like(model.weight)
            optimizer.step()
            sizes = model.weight.detach().norm(dim=1)
            torch.testing.assert_close(sizes, torch.ones(3))


def test_a_strangers_formulas_are_compiled_as_they_are():
    model = nn.Linear(9, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight = model.weight.detach().double()
    least = Least(0.05)
    with regplug.attach(model, optimizer, [Ridges(0.5), least], kernels="triton") as session:
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        assert session.plugins[0]._formula_kernel.rows.engine.runs
        assert session.plugins[0]._formula_kernel.rows.engine.why_not is None
        assert list(least.left) == []
        assert least.rows.describe(weight) == "Triton"
        assert regplug.RowKernel("plain", "rows").describe(weight) == "foreach"
    moved = weight - 0.1 * 0.5 * 2 * weight / (9 + weight.square().sum(1, keepdim=True))
    mean = moved.mean(1, keepdim=True)
    expected = moved.clamp(mean - 0.05, mean + 0.05)
    torch.testing.assert_close(model.weight.detach().double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("formula", "why"),
    [
        (lambda w: w / w.norm(), "sums over other dimensions"),
        (lambda w: w / w.norm(dim=0, keepdim=True), "sums over other dimensions"),
        (lambda w: w / w.norm(dim=1)[:, None], "sums over other dimensions"),
        (lambda w: w.cumsum(1), "calls cumsum"),
        (lambda w: w.sort(dim=1).values, "calls sort"),
        (lambda w: w.flatten(), "looks at the shape"),
        (lambda w: torch.ones(3, 4), "does not depend on w"),
        (lambda w: w.norm(p=3, dim=1, keepdim=True) * w, "norm of order 3"),
        (lambda w: regplug.iterated(lambda x: x * 0.5, w, 3), "one number for each row"),
    ],
)
def test_what_is_no_formula_of_rows_is_left_to_torch(formula, why):
    kernel = regplug.RowKernel("stranger", "rows", "triton")
    weights = [torch.randn(3, 4), torch.randn(5, 2)]
    before = [w.clone() for w in weights]
    assert list(kernel.apply(formula, [weights])) == [0, 1]
    assert why in kernel.engine.why_not
    assert kernel.describe(weights[0]) == f"foreach ({kernel.engine.why_not})"
    assert all(map(torch.equal, weights, before))


def test_a_kernel_that_differs_is_thrown_away_with_a_warning(monkeypatch):
    source = row_cuda.source_of
    monkeypatch.setattr(
        row_cuda, "source_of", lambda *given: source(*given).replace("tl.sum(", "2 * tl.sum(")
    )
    monkeypatch.setattr(row_cuda, "compiled", row_cuda.compiled.__wrapped__)
    model = nn.Linear(7, 3, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, ["unit_norm()"], kernels="triton"):
        model.weight.grad = torch.zeros_like(model.weight)
        with pytest.warns(UserWarning, match=r"unit_norm: its kernel for Triton is not used \(it"):
            optimizer.step()
        torch.testing.assert_close(model.weight.detach().norm(dim=1), torch.ones(3))
        optimizer.step()  # and says so once


def test_a_loop_stops_in_each_row_by_itself_and_keeps_nothing_else():
    def root(w):
        a = w.abs().sum(dim=1, keepdim=True)
        return w * regplug.iterated(lambda x: (x + a / x) / 2, a * 0 + 1, rounds=60)

    def leaking(w):
        seen = []

        def body(x):
            seen.append(x * 2)
            return x + 1

        total = w.sum(dim=1, keepdim=True)
        return w * regplug.iterated(body, total, rounds=2) * seen[-1]

    w = torch.rand(4, 6, dtype=F64) + 0.5
    expected = w * w.sum(1, keepdim=True).sqrt()
    kernel = regplug.RowKernel("roots", "rows", "triton")
    weights = [w.clone()]
    assert list(kernel.apply(root, [weights])) == []
    torch.testing.assert_close(weights[0], expected)
    kernel = regplug.RowKernel("leaks", "rows", "triton")
    assert list(kernel.apply(leaking, [weights])) == [0]
    assert "keeps what a round found" in kernel.engine.why_not


def test_without_triton_nothing_is_different(monkeypatch):
    monkeypatch.setattr(cuda, "is_interpreted", lambda: False)
    monkeypatch.setattr(cuda, "is_installed", lambda: False)
    found, kernel = trained(MaxNorm(1.0), OPTIMIZERS["SGD"], "triton")
    assert kernel.engine.runs == {}
    expected, _ = trained(MaxNorm(1.0), OPTIMIZERS["SGD"], "foreach")
    assert all(map(torch.equal, found, expected))


def test_step_counts_that_the_host_keeps_are_numbers_to_a_kernel_on_a_device():
    """Their addresses would be none of the device's, for which the meta device stands."""
    w = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([w], lr=0.1)
    rule, group = update_rule(optimizer), optimizer.param_groups[0]
    states = [{"step": torch.tensor(3.0), "exp_avg_sq": torch.zeros(2)} for _ in range(2)]
    there, known = compiled._scalars(rule, states, group, torch.device("meta"))
    assert (there, known) == ({}, {"step": 3.0})
    here, known = compiled._scalars(rule, states, group, torch.device("cpu"))
    assert [list(here), known] == [["step"], {}]


@pytest.mark.parametrize(
    "spec", ["max_norm(1.0)", "unit_norm()", "group_lasso(0.1, delivery='proximal')"]
)
def test_describe_says_what_executes_formulas_of_rows(spec):
    model = nn.Linear(5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [spec], kernels="triton") as session:
        assert "in one kernel (Triton)" in session.describe()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [spec], kernels="foreach") as session:
        assert "kernel" not in session.describe()
