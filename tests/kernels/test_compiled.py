"""Compiled kernels against torch in float64: every formula, dtype and layout, on each compiler."""

import importlib.util
import logging
import os
import signal
import warnings

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import SpecError
from regplug.kernels import choice, sources
from regplug_builtins import L1, L2, L2SP, ElasticNet

INTERPRETED = not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
NUMBA = importlib.util.find_spec("numba") is not None

COMPILERS = [
    pytest.param("numba", marks=pytest.mark.skipif(not NUMBA, reason="numba is not installed")),
    pytest.param(
        "triton",
        marks=pytest.mark.skipif(not INTERPRETED, reason="no Triton, or it is not interpreted"),
    ),
]


class LogSum(regplug.Penalty):
    """A value alone."""

    separable = True

    def value(self, w):
        return (w.square() / (0.01 + w.square())).sum()


class Mcp(regplug.Penalty):
    """A choice by elements, a gradient and a proximal operator of its own."""

    separable = True

    def value(self, w):
        size = w.abs()
        return torch.where(size <= 3, size - size.square() / 6, torch.full_like(w, 1.5)).sum()

    def gradient(self, w):
        return w.sign() * (1 - w.abs() / 3).clamp(min=0)

    def proximal(self, w, step):
        inner = torch.sign(w) * (w.abs() - step * self.strength).clamp(min=0)
        return torch.where(w.abs() <= 3, inner / (1 - step * self.strength / 3), w)


PENALTIES = {
    "l1": lambda **k: L1(0.02, **k),
    "l2": lambda **k: L2(0.03, **k),
    "elastic net": lambda **k: ElasticNet(0.02, 0.01, **k),
    "l2_sp": lambda **k: L2SP(0.05, **k),
    "mcp": lambda **k: Mcp(0.02, **k),
}
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.5),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01, betas=(0.9, 0.7)),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
}


def tensors(dtype=torch.float64):
    """Weights of every kind of layout, 40,000 elements and more together."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    spread = drawn(30, 80)[:, ::2]
    return [
        drawn(333, 101),
        drawn(),
        drawn(0, 4),
        drawn(7),
        drawn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last),
        drawn(31, 17).t(),
        spread,
        drawn(1025)[1:],
        torch.zeros(9, 5, dtype=dtype),
    ]


def trained(penalty, optimizer, kernels, dtype=torch.float64, steps=3, **settings):
    weights = nn.ParameterList([nn.Parameter(w) for w in tensors(dtype)])
    assert [w.stride() for w in weights] == [w.stride() for w in tensors(dtype)]
    stepping = optimizer(weights.parameters())
    generator = torch.Generator().manual_seed(2)
    attached = penalty(where="all", **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a kernel that is not used says so
        with regplug.attach(weights, stepping, [attached], kernels=kernels):
            for _ in range(steps):
                for i, w in enumerate(weights):
                    drawn = torch.randn(w.shape, generator=generator, dtype=torch.float64)
                    # One gradient lies otherwise than its weight.
                    w.grad = drawn.to(dtype) if i == 5 else torch.empty_like(w).copy_(drawn)
                weights[3].grad = None
                stepping.step()
            runs = attached._formula_kernel.choice._runs
            compiled = [run for run in runs.values() if run is not None]
    return [w.detach().clone() for w in weights], len(compiled)


@pytest.mark.parametrize("kernels", COMPILERS)
@pytest.mark.parametrize("name", [*PENALTIES, "log sum"])
def test_a_gradient_at_the_step(name, kernels):
    make = PENALTIES.get(name, lambda **k: LogSum(0.02, **k))
    expected, none = trained(make, OPTIMIZERS["SGD"], "foreach", delivery="step")
    found, some = trained(make, OPTIMIZERS["SGD"], kernels, delivery="step")
    assert none == 0
    assert some >= 1
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kernels", COMPILERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", PENALTIES)
def test_a_proximal_operator_with_the_step_of_an_optimizer(name, optimizer, kernels):
    made = PENALTIES[name], OPTIMIZERS[optimizer]
    expected, none = trained(*made, "foreach", delivery="proximal")
    found, some = trained(*made, kernels, delivery="proximal")
    assert none == 0
    assert some >= 1
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-11)
        assert torch.equal(own == 0, other == 0)


@pytest.mark.parametrize("kernels", COMPILERS)
@pytest.mark.parametrize("delivery", ["step", "proximal"])
def test_float32_is_as_near_to_float64_as_torch_is(delivery, kernels):
    made = PENALTIES["elastic net"], OPTIMIZERS["SGD"]
    exact, _ = trained(*made, "foreach", delivery=delivery)
    by_torch, _ = trained(*made, "foreach", torch.float32, delivery=delivery)
    found, some = trained(*made, kernels, torch.float32, delivery=delivery)
    assert some >= 1
    for own, torchs, wide in zip(found, by_torch, exact, strict=True):
        error = (own - wide).abs().max() if own.numel() else torch.zeros(())
        allowed = (torchs - wide).abs().max() if own.numel() else torch.zeros(())
        assert error <= 1.5 * allowed + 1e-7


@pytest.mark.skipif(not INTERPRETED, reason="no Triton, or it is not interpreted")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("delivery", ["step", "proximal"])
def test_halves_are_computed_with_in_float32_and_rounded_once(dtype, delivery):
    settings = {"delivery": delivery, "steps": 1}
    made = PENALTIES["l1"], lambda p: torch.optim.SGD(p, lr=0.125)
    expected, _ = trained(*made, "foreach", dtype, **settings)
    found, some = trained(*made, "triton", dtype, **settings)
    assert some >= 1
    # Triton's interpreter cuts bfloat16 off where a device rounds to nearest.
    cut = 2**-8 if dtype == torch.bfloat16 else 1e-6
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=torch.finfo(dtype).eps, atol=cut)


@pytest.mark.parametrize("kernels", COMPILERS)
def test_a_schedule_compiles_nothing_anew(kernels):
    def penalty(**settings):
        return L1(regplug.schedules.linear(0.01, 0.2, steps=5), **settings)

    settings = {"steps": 6, "delivery": "proximal"}
    _, once = trained(PENALTIES["l1"], OPTIMIZERS["Adam"], kernels, steps=1, delivery="proximal")
    expected, _ = trained(penalty, OPTIMIZERS["Adam"], "foreach", **settings)
    found, some = trained(penalty, OPTIMIZERS["Adam"], kernels, **settings)
    assert some == once
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-11)
    first = L1(regplug.schedules.linear(0.01, 0.2, steps=5))
    assert first.strength == 0.01  # it does move


def attached(penalty, size=60_000, kernels="numba", optimizer=torch.optim.SGD):
    model = nn.Linear(size // 100, 100, bias=False)
    stepping = optimizer(model.parameters(), lr=1.0)
    return model, stepping, regplug.attach(model, stepping, [penalty], kernels=kernels)


def stepped(model, stepping):
    model.weight.grad = torch.zeros_like(model.weight)
    before = model.weight.detach().clone()
    stepping.step()
    return before - model.weight.detach()


needs_numba = pytest.mark.skipif(not NUMBA, reason="numba is not installed")


@needs_numba
def test_what_a_formula_reads_of_its_plugin_is_what_it_is_now():
    """Traced once and for all, it would be frozen silently."""

    class Moving(regplug.Penalty):
        separable = True
        slope = 1.0

        def value(self, w):
            return self.slope * w.sum()

        def gradient(self, w):
            return torch.ones_like(w) * self.slope if self.slope > 0 else -torch.ones_like(w)

    penalty = Moving(0.5, delivery="step")
    model, stepping, session = attached(penalty)
    with session:
        for slope, expected in ((1.0, 0.5), (3.0, 1.5), (-7.0, -0.5)):
            penalty.slope = slope
            torch.testing.assert_close(
                stepped(model, stepping), torch.full_like(model.weight, expected)
            )


@needs_numba
def test_a_formula_that_cannot_be_traced_goes_on_as_ever_and_is_named():
    class Odd(regplug.Penalty):
        separable = True

        def value(self, w):
            return w.abs().sum()

        def gradient(self, w):
            return w.sign() * (1 if w.numel() else 0)

    model, stepping, session = attached(Odd(0.5, delivery="step"))
    with session:
        moved = stepped(model, stepping)
        (penalty,) = session.plugins
        kernel = penalty._formula_kernel
        why = kernel.choice.describe(kernel.symbolic_gradient, 1, model.weight)
    torch.testing.assert_close(moved, 0.5 * (model.weight.detach() + moved).sign())
    assert why == "foreach (it calls numel)"


@needs_numba
def test_a_kernel_that_differs_from_torch_is_thrown_away_with_a_warning(monkeypatch):
    from regplug.kernels import cpu

    monkeypatch.setitem(cpu._DIALECT.elements, "sign", "one if {0} > zero else zero")
    cpu.compiled.cache_clear()
    model, stepping, session = attached(L1(0.5, delivery="step"))
    with session:
        with pytest.warns(UserWarning, match="l1: its kernel for numba is not used"):
            moved = stepped(model, stepping)
        again = stepped(model, stepping)  # told once
    cpu.compiled.cache_clear()
    assert set(moved.unique().tolist()) == {-0.5, 0.5}
    assert set(again.unique().tolist()) <= {-0.5, 0.0, 0.5}


@needs_numba
def test_a_compiler_that_fails_is_no_failure(monkeypatch):
    from regplug.kernels import cpu

    def broken(*args):
        raise RuntimeError("no such target")

    monkeypatch.setattr(cpu, "compiled", broken)
    model, stepping, session = attached(L1(0.5, delivery="step"))
    with session, pytest.warns(UserWarning, match="RuntimeError: no such target"):
        assert set(stepped(model, stepping).unique().tolist()) == {-0.5, 0.5}


@needs_numba
def test_autograd_sees_that_weights_were_changed():
    """A kernel writes past torch, which would let a backward pass use weights that are gone."""
    model, stepping, session = attached(L1(0.5, delivery="proximal"))
    with session:
        kept = model.weight.square().sum()
        model.weight.grad = torch.zeros_like(model.weight)
        stepping.step()
        (penalty,) = session.plugins
        assert penalty._formula_kernel.choice._runs
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            kept.backward()


@needs_numba
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_work_and_leave_none_out(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        weights = nn.ParameterList([nn.Parameter(torch.ones(n)) for n in (70_001, 3, 50_000, 1)])
        stepping = torch.optim.SGD(weights.parameters(), lr=1.0)
        with regplug.attach(weights, stepping, [L1(0.25, where="all", delivery="step")]):
            for w in weights:
                w.grad = torch.zeros_like(w)
            stepping.step()
        assert all(bool((w == 0.75).all()) for w in weights)
    finally:
        torch.set_num_threads(before)


@needs_numba
def test_a_process_that_forked_has_threads_of_its_own():
    """Those of its parent are not in it: it would wait for them without end."""
    import numpy

    from regplug.kernels import cpu

    def work(table, numbers):
        return float(table[-1].sum())

    table = numpy.array([[0], [200_000]])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert cpu.run(work, table, (), 1, 4) == 200_000
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if cpu.run(work, table, (), 1, 4) == 200_000 else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(before)


@needs_numba
def test_weights_that_are_swapped_are_read_anew():
    model, stepping, session = attached(L2(0.25, delivery="step"))
    with session:
        stepped(model, stepping)
        for other in (
            torch.ones(100, 600),
            torch.ones(600, 100).t(),
            torch.ones(100, 600).double(),
        ):
            model.weight.grad = None
            model.weight.data = other
            moved = stepped(model, stepping)
            assert moved.dtype == other.dtype
            assert bool((moved == 0.5).all())


def test_foreach_turns_the_others_off(monkeypatch):
    model, stepping, session = attached(L1(0.5, delivery="step"), kernels="foreach")
    with session:
        stepped(model, stepping)
        assert session.kernels == "foreach"
        assert not session.plugins[0]._formula_kernel.choice._runs
    monkeypatch.setenv("REGPLUG_KERNELS", "foreach")
    assert attached(L1(0.5), kernels=None)[2].kernels == "foreach"
    assert choice.chosen("numba") == "numba"


def test_kernels_that_are_unknown_are_refused(monkeypatch):
    with pytest.raises(SpecError, match="auto, foreach, numba, triton, got 'cuda'"):
        attached(L1(0.5), kernels="cuda")
    monkeypatch.setenv("REGPLUG_KERNELS", "fast")
    with pytest.raises(SpecError, match="got 'fast'"):
        attached(L1(0.5), kernels=None)


def test_without_compilers_torch_does_it(monkeypatch):
    from regplug.kernels import cpu

    monkeypatch.setattr(cpu, "is_installed", lambda: False)
    model, stepping, session = attached(L1(0.5, delivery="step"), kernels="auto")
    with session:
        assert set(stepped(model, stepping).unique().tolist()) == {-0.5, 0.5}
        assert not session.plugins[0]._formula_kernel.choice._runs


def test_what_is_generated_is_kept_in_a_folder_that_can_be_named(monkeypatch, tmp_path):
    monkeypatch.setenv("REGPLUG_CACHE_DIR", str(tmp_path / "own"))
    sources.folder.cache_clear()
    try:
        assert sources.executed("x = 1\n")["x"] == 1
        (file,) = (tmp_path / "own").glob("kernel_*.py")
        file.write_text("x = 2\n", encoding="utf-8")  # somebody else's
        assert sources.executed("x = 1\n")["x"] == 1
        monkeypatch.setenv("REGPLUG_CACHE_DIR", "/proc/none")
        sources.folder.cache_clear()
        assert sources.executed("x = 3\n")["x"] == 3
        assert not str(sources.folder()).startswith("/proc")
    finally:
        sources.folder.cache_clear()


@needs_numba
def test_the_first_kernel_says_how_long_it_took(caplog, monkeypatch, tmp_path):
    from regplug.kernels import cpu

    cpu.compiled.cache_clear()
    model, stepping, session = attached(L1(0.5, delivery="step"))
    with session, caplog.at_level(logging.INFO, logger="regplug"):
        stepped(model, stepping)
    assert any("compiled a kernel" in record.message for record in caplog.records)
