"""Kernels of rows and columns by numba, against torch's operations and closed forms in float64."""

import importlib.util

import pytest
import torch
from torch import nn

import regplug
from regplug.kernels import cpu, row_cpu
from regplug_builtins import GroupLasso, MaxNorm, UnitNorm
from tests.kernels.row_cases import F64, OPTIMIZERS, Layers, Least, Ridges, check_by, trained

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="numba is not installed"
)

DTYPES = [torch.float32, F64]


@pytest.mark.parametrize("groups", ["rows", "columns"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_constraints(groups, dtype):
    for make in (lambda: MaxNorm(1.5, groups=groups), lambda: UnitNorm(groups=groups)):
        check_by("numba", make, OPTIMIZERS["SGD"], dtype)


@pytest.mark.parametrize("groups", ["rows", "columns"])
def test_the_gradient_of_a_group_lasso(groups):
    check_by("numba", lambda: GroupLasso(0.2, groups=groups, delivery="step"), OPTIMIZERS["SGD"])


@pytest.mark.parametrize(
    ("groups", "optimizer", "dtype"),
    [
        ("rows", "SGD", torch.float32),
        ("rows", "Adam", torch.float32),
        ("columns", "Adam", torch.float32),  # by the same kernel
        *(
            pytest.param(*of, marks=pytest.mark.slow)  # each takes seconds to compile
            for of in (
                *(("rows", name, torch.float32) for name in OPTIMIZERS if name[0] == "R"),
                ("rows", "Adadelta", torch.float32),
                ("columns", "SGD", F64),
                ("rows", "Adam", F64),
            )
        ),
    ],
)
def test_the_proximal_operator_under_every_kind_of_step(groups, optimizer, dtype):
    def make():
        return GroupLasso(0.3, groups=groups, delivery="proximal")

    check_by("numba", make, OPTIMIZERS[optimizer], dtype)


def test_halves_are_torchs():
    found, kernel = trained(MaxNorm(1.0), OPTIMIZERS["SGD"], "numba", torch.bfloat16)
    assert not kernel.engine.runs
    expected, _ = trained(MaxNorm(1.0), OPTIMIZERS["SGD"], "foreach", torch.bfloat16, like="numba")
    assert all(map(torch.equal, found, expected))


def test_all_rows_of_all_weights_are_one_call_whatever_layer_they_are_of(monkeypatch):
    called = []
    run = row_cpu.run
    monkeypatch.setattr(
        row_cpu,
        "run",
        lambda kernel, table, *rest: called.append(table.shape[1]) or run(kernel, table, *rest),
    )
    model = Layers(torch.float32, long=40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, ["max_norm(1)"], kernels="auto"):
        for step in range(3):
            for w in model.parameters():
                w.grad = torch.ones_like(w)
            called.clear()
            optimizer.step()
            assert step == 0 or called == [8]  # but for one whose rows are no view


@pytest.mark.parametrize("groups", ["rows", "columns"])
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_rows_and_leave_none_out(threads, groups):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        weights = [torch.rand(shape) + 0.5 for shape in ((301, 257), (1, 5), (3, 40_001), (70, 2))]
        axis = int(groups == "columns")
        expected = [w / w.double().norm(dim=1 - axis, keepdim=True) for w in weights]
        kernel = regplug.RowKernel("unit", groups, "numba")
        left = kernel.apply(lambda w: w / w.norm(dim=1 - axis, keepdim=True), [weights])
        assert list(left) == []
        for found, wanted in zip(weights, expected, strict=True):
            torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-6, atol=0)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_is_found_whatever_its_sign_and_what_is_no_number_is_the_largest(dtype):
    rows = torch.linspace(-1, 1, 40_000, dtype=dtype).reshape(40, 1000)
    rows[3] = -rows[3].abs() - 1
    rows[4] = 0.0
    rows[5] = -float("inf")
    rows[6, 7] = float("inf")
    rows[7, 8] = float("nan")
    rows[8, 9] = -float("nan")
    rows[9] = -torch.finfo(dtype).tiny / 4
    weights = [rows.clone()]
    kernel = regplug.RowKernel("largest", "rows", "numba")
    left = kernel.apply(lambda w: w * 0 + w.amax(dim=1, keepdim=True), [weights])
    assert list(left) == []
    expected = rows * 0 + rows.amax(1, keepdim=True)
    torch.testing.assert_close(weights[0], expected, rtol=0, atol=0, equal_nan=True)


def test_a_schedule_compiles_nothing_anew_and_is_followed(monkeypatch):
    made = []
    source = row_cpu.source_of
    monkeypatch.setattr(row_cpu, "source_of", lambda *given: made.append(given) or source(*given))
    row_cpu.compiled.cache_clear()
    model = nn.Linear(1000, 40, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bound = regplug.schedules.linear(1.0, 0.1, steps=9)
    with regplug.attach(model, optimizer, [MaxNorm(bound)], kernels="numba"):
        for step in range(5):
            model.weight.data.fill_(1.0)
            model.weight.grad = torch.zeros_like(model.weight)
            optimizer.step()
            length = model.weight.detach().norm(dim=1)
            torch.testing.assert_close(length, torch.full((40,), bound(step)))
    assert len(made) == 1


def test_weights_that_move_in_memory_are_followed():
    model = nn.Linear(1000, 40, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = []
    with regplug.attach(model, optimizer, ["unit_norm()"], kernels="numba"):
        for how in (torch.clone, lambda w: w.t().contiguous().t(), lambda w: w.repeat(1, 1)):
            kept.append(model.weight.data)
            model.weight.data = how(torch.randn(40, 1000))
            model.weight.grad = torch.zeros_like(model.weight)
            before = [w.clone() for w in kept]
            optimizer.step()
            sizes = model.weight.detach().norm(dim=1)
            torch.testing.assert_close(sizes, torch.ones(40))
            assert all(map(torch.equal, kept, before))


def test_autograd_sees_that_weights_were_changed():
    model = nn.Linear(1000, 40, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, ["unit_norm()"], kernels="numba"):
        kept = model.weight.square().sum()
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            kept.backward()


def test_a_strangers_formulas_are_compiled_as_they_are():
    model = nn.Linear(1000, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight = model.weight.detach().double()
    least = Least(0.01)
    with regplug.attach(model, optimizer, [Ridges(0.5), least], kernels="numba") as session:
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        assert list(session.plugins[0]._formula_kernel.rows.engine.runs.values()) != [None]
        assert list(least.left) == []
        assert least.rows.describe(model.weight) == "numba"
        assert least.rows.describe(nn.Parameter(torch.ones(3, 4))) == "foreach"
    moved = weight - 0.1 * 0.5 * 2 * weight / (1000 + weight.square().sum(1, keepdim=True))
    mean = moved.mean(1, keepdim=True)
    expected = moved.clamp(mean - 0.01, mean + 0.01)
    torch.testing.assert_close(model.weight.detach().double(), expected, rtol=1e-6, atol=1e-7)


def test_a_loop_stops_in_each_row_by_itself_and_what_its_rounds_need_is_kept():
    def root(w):
        a = (w * w + 1).sqrt()  # read by each round
        whole = a.sum(dim=1, keepdim=True)
        found = regplug.iterated(
            lambda x: (x + (a / x).sum(dim=1, keepdim=True)) / 2, whole * 0 + 1, rounds=60
        )
        again = regplug.iterated(lambda x: x + (a * 0).sum(1, keepdim=True), found, rounds=3)
        return torch.where(a > 1e-30, a * again, a)

    w = torch.rand(40, 1000, dtype=F64) + 0.5
    a = (w * w + 1).sqrt()
    weights = [w.clone()]
    kernel = regplug.RowKernel("roots", "rows", "numba")
    assert list(kernel.apply(root, [weights])) == []
    torch.testing.assert_close(weights[0], a * a.sum(1, keepdim=True).sqrt(), rtol=1e-12, atol=0)


def test_a_loop_of_no_rounds_gives_what_it_begins_with():
    def formula(w):
        a = w.exp() if w.ndim == 0 else w * 3
        start = w.sum(dim=1, keepdim=True)
        found = regplug.iterated(lambda x: x + a.sum(dim=1, keepdim=True), start, rounds=0)
        return a + found

    w = torch.randn(40, 1000, dtype=F64)
    weights = [w.clone()]
    assert list(regplug.RowKernel("none", "rows", "numba").apply(formula, [weights])) == []
    torch.testing.assert_close(weights[0], 3 * w + w.sum(1, keepdim=True))


def test_functions_that_torch_has_vectors_for_are_left_to_torch():
    kernel = regplug.RowKernel("slow", "rows", "numba")
    weights = [torch.rand(40, 1000)]
    left = kernel.apply(lambda w: w.exp() / w.exp().sum(1, keepdim=True), [weights])
    assert list(left) == [0]
    assert kernel.describe(weights[0]) == "foreach (its functions are faster in torch)"
    kernel = regplug.RowKernel("one each", "rows", "numba")
    left = kernel.apply(lambda w: w * w.sum(1, keepdim=True).exp(), [[torch.rand(40, 1000) / 1e3]])
    assert list(left) == []


def test_a_kernel_that_differs_is_thrown_away_with_a_warning(monkeypatch):
    source = row_cpu.source_of
    monkeypatch.setattr(
        row_cpu, "source_of", lambda *given: source(*given).replace("= added(", "= 2 * added(")
    )
    monkeypatch.setattr(row_cpu, "compiled", row_cpu.compiled.__wrapped__)
    model = nn.Linear(1000, 40, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, ["unit_norm()"], kernels="numba") as session:
        assert "in one kernel (numba)" in session.describe()
        model.weight.grad = torch.zeros_like(model.weight)
        with pytest.warns(UserWarning, match=r"unit_norm: its kernel for numba is not used \(it"):
            optimizer.step()
        torch.testing.assert_close(model.weight.detach().norm(dim=1), torch.ones(40))
        optimizer.step()  # and says so once
        assert "kernel" not in session.describe()


def test_weights_that_are_few_and_small_are_torchs():
    model = nn.Linear(50, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, ["unit_norm()"], kernels="numba") as session:
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        assert "engine" not in vars(session.plugins[0]._rows[1])
        assert "kernel" not in session.describe()


def test_without_numba_nothing_is_different(monkeypatch):
    monkeypatch.setattr(cpu, "is_installed", lambda: False)
    found, kernel = trained(MaxNorm(1.0), OPTIMIZERS["SGD"], "auto", like="numba")
    assert kernel.engine.runs == {}
    expected, _ = trained(MaxNorm(1.0), OPTIMIZERS["SGD"], "foreach", like="numba")
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    "spec", ["max_norm(1.0)", "unit_norm()", "group_lasso(0.1, delivery='proximal')"]
)
def test_describe_says_what_executes_formulas_of_rows(spec):
    for kernels, says in (("auto", True), ("numba", True), ("foreach", False)):
        model = nn.Linear(1000, 40)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with regplug.attach(model, optimizer, [spec], kernels=kernels) as session:
            assert ("in one kernel (numba)" in session.describe()) == says
