"""Which kernel executes a formula, and what happens where none can."""

import importlib.util
import logging
import os
import signal
import warnings
from functools import partial

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import SpecError
from regplug.kernels import choice, sources
from regplug_builtins import L1, L2

NUMBA = importlib.util.find_spec("numba") is not None


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

    monkeypatch.setitem(cpu.DIALECT.elements, "sign", "one if {0} > zero else zero")
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
        assert penalty._formula_kernel.choice.engine.runs
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

    from regplug.kernels import threads

    def work(table, numbers):
        return float(table[-1].sum())

    table = numpy.array([[0], [200_000]])
    cut = partial(threads.cut_elements, columns=1, itemsize=4)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert threads.run(work, table, (), cut) == 200_000
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if threads.run(work, table, (), cut) == 200_000 else 1)
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
        assert not session.plugins[0]._formula_kernel.choice.engine.runs
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
        assert not session.plugins[0]._formula_kernel.choice.engine.runs


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


@needs_numba
def test_a_numba_that_does_not_import_is_no_failure(monkeypatch):
    """As where numpy is newer than numba knows."""
    import sys

    from regplug.kernels import cpu

    monkeypatch.setitem(sys.modules, "regplug.kernels.pointers", None)
    cpu.failure.cache_clear()
    try:
        for again in (False, True):  # told once
            model, stepping, session = attached(L1(0.5, delivery="step"), kernels="auto")
            with session, warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert set(stepped(model, stepping).unique().tolist()) == {-0.5, 0.5}
            told = [str(warning.message) for warning in caught]
            assert (told == []) == again
            assert all("numba does not import" in message for message in told)
    finally:
        cpu.failure.cache_clear()


@needs_numba
def test_a_compiler_that_fails_is_told_of_once_and_torch_does_it(monkeypatch):
    from regplug.kernels import cpu

    def fails(*args):
        raise RuntimeError("the compiler is not happy")

    monkeypatch.setattr(cpu, "compiled", fails)
    model, stepping, session = attached(L1(0.5, delivery="step"), kernels="auto")
    with session, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert set(stepped(model, stepping).unique().tolist()) == {-0.5, 0.5}
        assert "in torch's own operations (its kernel could not be made)" in session.describe()
    (told,) = [str(warning.message) for warning in caught]
    assert "RuntimeError: the compiler is not happy" in told
