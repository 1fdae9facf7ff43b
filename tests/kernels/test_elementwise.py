"""Element-wise formulas of plugins run in one kernel, or by torch's operations, to the same end."""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regplug
from regplug_builtins import NonNegative

COMPILED = ["foreach"] + ["numba"] * (importlib.util.find_spec("numba") is not None)
LARGE = 1 << 16
EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "third_party_plugin"


def halved(w: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return torch.where(w * g > 0, w / 2, w)


@pytest.mark.parametrize("kernels", COMPILED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [[3, 0, 5], [LARGE, 7], [(1 << 20) + 3]])
def test_an_elementwise_formula(kernels: str, dtype: torch.dtype, sizes: list[int]) -> None:
    torch.manual_seed(0)
    w = [torch.randn(n).to(dtype) for n in sizes]
    g = [torch.randn(n).to(dtype) for n in sizes]
    expected = [
        torch.where(a.double() * b.double() > 0, a.double() / 2, a.double()).to(dtype)
        for a, b in zip(w, g, strict=True)
    ]
    regplug.Elementwise("mine", kernels)(halved, w, g)
    for found, wanted in zip(w, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("kernels", COMPILED)
def test_layouts_views_and_numbers_that_move(kernels: str) -> None:
    run = regplug.Elementwise("mine", kernels)
    torch.manual_seed(0)
    for factor in (0.5, 0.25, 0.0):
        w = [
            torch.randn(300, 400).t(),
            torch.randn(8, 4, 60, 60).contiguous(memory_format=torch.channels_last),
            torch.randn(200, 800)[:, ::2],
            torch.tensor(1.5),
        ]
        expected = [each.double() * factor for each in w]
        run(lambda a, factor=factor: a * factor, w)
        for found, wanted in zip(w, expected, strict=True):
            torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)


def test_it_says_what_executes_it() -> None:
    run = regplug.Elementwise("mine", COMPILED[-1])
    large = [torch.zeros(LARGE)]
    assert run.describe(halved, 2, large) == COMPILED[-1]
    assert run.describe(halved, 2, [torch.zeros(3)]) == "foreach"
    if "numba" in COMPILED:
        assert "shape" in run.describe(lambda w: w * w.shape[0], 1, large)


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 100)).to(dtype)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 300, generator=generator).to(next(model.parameters()))
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kernels", COMPILED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_cautious_decay(kernels: str, dtype: torch.dtype, tensor_lr: bool) -> None:
    model = network(dtype)
    bare = copy.deepcopy(model)
    lr: Any = torch.tensor(0.1, dtype=torch.float64) if tensor_lr else 0.1
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    plain = torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9)
    spec = "weight_decay(0.2, where='all', cautious=True)"
    regplug.attach(model, optimizer, [spec], kernels=kernels)
    for _ in range(3):
        before = [p.detach().clone() for p in model.parameters()]
        step(model, optimizer)
        step(bare, plain)
        for p, q, old in zip(model.parameters(), bare.parameters(), before, strict=True):
            moved, was = q.detach().double(), old.double()
            decayed = moved - torch.where((was - moved) * was >= 0, 0.1 * 0.2 * was, 0)
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(p.detach().double(), decayed, rtol=eps, atol=eps / 64)
            q.data.copy_(p.detach())


@pytest.mark.parametrize("kernels", COMPILED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_non_negative(kernels: str, dtype: torch.dtype) -> None:
    model = network(dtype)
    bare = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    session = regplug.attach(model, optimizer, ["non_negative(where='all')"], kernels=kernels)
    step(model, optimizer)
    step(bare, torch.optim.Adam(bare.parameters(), lr=0.01))
    for p, q in zip(model.parameters(), bare.parameters(), strict=True):
        assert torch.equal(p, q.relu())
        assert (p == 0).any()
    assert ("in one kernel (numba)" in session.describe()) == (
        kernels == "numba" and dtype != torch.bfloat16
    )


class Sign(NonNegative):
    """A formula that can't be traced."""

    def constrained(self, w: torch.Tensor) -> torch.Tensor:
        return w.clamp(min=0) if w.sum() > -1e9 else w


@pytest.mark.parametrize("kernels", COMPILED)
def test_a_formula_that_cannot_be_traced_runs_as_it_is_written(kernels: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    regplug.attach(model, optimizer, [Sign()], kernels=kernels)
    step(model, optimizer)
    assert all(float(p.detach().min()) >= 0 for p in model.parameters() if p.ndim == 2)


# --- what describe() says ---------------------------------------------------------------------


class Branches(regplug.Penalty):
    separable = True

    def value(self, w: torch.Tensor) -> torch.Tensor:
        return w.abs().sum() * (1 if w.shape[0] else 2)


def described(plugin: Any, **settings: Any) -> str:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    session = regplug.attach(model, optimizer, [plugin], **settings)
    step(model, optimizer)
    return session.describe()


def test_describe_says_which_kernel_runs() -> None:
    pytest.importorskip("numba")
    for delivery in ("step", "proximal"):
        assert "l1: in one kernel (numba)" in described(f"l1(0.1, delivery={delivery!r})")
        text = described(f"l1(0.1, delivery={delivery!r})", kernels="foreach")
        assert "kernel" not in text
        assert "operations" not in text
    text = described(Branches(0.1, delivery="step"))
    assert "branches: in torch's own operations (it" in text
    assert "kernel" not in described("l2(0.1, where='all', delivery='step')")


class TwoMinds(regplug.Penalty):
    """Whose lists do something else than its formula."""

    separable = True

    def value(self, w: torch.Tensor) -> torch.Tensor:
        return w.square().sum()

    def add_gradients(
        self, gradients: list[torch.Tensor], weights: list[torch.Tensor], factor: float
    ) -> None:
        torch._foreach_add_(gradients, weights, alpha=3 * factor)


def test_describe_says_that_a_kernel_was_dropped() -> None:
    pytest.importorskip("numba")
    with pytest.warns(UserWarning, match="is not used"):
        text = described(TwoMinds(0.1, delivery="step"))
    assert "two_minds: in torch's own operations (its kernel came to something else)" in text


def test_a_third_partys_plugin_runs_in_one_kernel_without_a_change() -> None:
    pytest.importorskip("numba")
    spec = importlib.util.spec_from_file_location("log_sum_example", EXAMPLE / "regplug_log_sum.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plugin = next(
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, regplug.Penalty) and v is not regplug.Penalty
    )
    results = {}
    for kernels in ("numba", "foreach"):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        session = regplug.attach(model, optimizer, [plugin(0.01, delivery="step")], kernels=kernels)
        step(model, optimizer)
        assert ("in one kernel (numba)" in session.describe()) == (kernels == "numba")
        results[kernels] = [p.detach() for p in model.parameters()]
    for a, b in zip(*results.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16, torch.float64, torch.bool], ids=str)
@pytest.mark.parametrize("count", [3, 60])
def test_numbers_of_any_dtype_are_read_as_they_are(dtype, count):
    weights = [torch.full((100, 200), 2.0) for _ in range(count)]
    run = regplug.Elementwise("mine")
    run(lambda w, s: w * s, weights, scalars=[torch.tensor(3.0).to(dtype)])
    expected = 2.0 if dtype is torch.bool else 6.0
    assert all(bool((w == expected).all()) for w in weights)
