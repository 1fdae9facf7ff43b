"""Compiled kernels against torch in float64: every formula, dtype and layout, on each compiler."""

import importlib.util
import warnings

import pytest
import torch
from torch import nn

import regplug
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
        with regplug.attach(weights, stepping, [attached], kernels=kernels, handover=False):
            for _ in range(steps):
                for i, w in enumerate(weights):
                    drawn = torch.randn(w.shape, generator=generator, dtype=torch.float64)
                    # One gradient lies otherwise than its weight.
                    w.grad = drawn.to(dtype) if i == 5 else torch.empty_like(w).copy_(drawn)
                weights[3].grad = None
                stepping.step()
            runs = attached._formula_kernel.choice.engine.runs
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
