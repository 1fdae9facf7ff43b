"""Compiled kernels against torch in float64: every formula, dtype and layout, on each compiler."""

import importlib.util

import pytest
import torch

import regplug
from regplug_builtins import L1
from tests.kernels.cases import OPTIMIZERS, PENALTIES, LogSum, trained

INTERPRETED = not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
NUMBA = importlib.util.find_spec("numba") is not None

COMPILERS = [
    pytest.param("numba", marks=pytest.mark.skipif(not NUMBA, reason="numba is not installed")),
    pytest.param(
        "triton",
        marks=pytest.mark.skipif(not INTERPRETED, reason="no Triton, or it is not interpreted"),
    ),
]


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
