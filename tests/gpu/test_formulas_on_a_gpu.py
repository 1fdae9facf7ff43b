"""Kernels of separable formulas on the GPU: every formula, dtype and layout, against float64."""

import warnings

import pytest
import torch
from torch import nn

import regplug
from regplug_builtins import L1, L2, L2SP, ElasticNet
from tests.gpu.cards import DEVICE
from tests.kernels.cases import OPTIMIZERS, PENALTIES, LogSum, Mcp, tensors, trained

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
FORMULAS = {
    "l1": lambda **k: L1(0.5, **k),
    "l2": lambda **k: L2(0.5, **k),
    "elastic net": lambda **k: ElasticNet(0.5, 0.25, **k),
    "l2_sp": lambda **k: L2SP(0.5, **k),
    "mcp": lambda **k: Mcp(0.5, **k),
    "log sum": lambda **k: LogSum(0.5, **k),
}
LR = 0.125
UNLIKE = (5, 6)
"""Whose gradients lie otherwise than the weights, so that no kernel can work on them."""
FUSED = {
    "fused SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.5, fused=True),
    "fused Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, fused=True),
    "capturable Adam": lambda p: torch.optim.Adam(p, lr=0.01, capturable=True),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "capturable RAdam": lambda p: torch.optim.RAdam(p, lr=0.01, capturable=True),
    "capturable NAdam": lambda p: torch.optim.NAdam(p, lr=0.01, capturable=True),
    "capturable RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, capturable=True),
}


def wide(tensor):
    return tensor.detach().to("cpu", torch.float64, copy=True)


def stepped(penalty, dtype, kernels):
    """Return weights before, gradients before, gradients and weights after one step, in float64.

    Weights have moved since the penalty was attached, so that they are not their own anchors.
    """
    weights = nn.ParameterList([nn.Parameter(w) for w in tensors(dtype, DEVICE)])
    optimizer = torch.optim.SGD(weights.parameters(), lr=LR)
    generator = torch.Generator().manual_seed(3)
    anchors = [wide(w) for w in weights]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")  # a kernel that is not used says so
        with regplug.attach(weights, optimizer, [penalty], kernels=kernels, handover=False):
            for i, w in enumerate(weights):
                drawn = torch.randn(w.shape, generator=generator, dtype=torch.float64)
                w.add_(drawn.to(dtype).to(DEVICE))
                gradient = torch.randn(w.shape, generator=generator, dtype=torch.float64)
                gradient = gradient.to(dtype).to(DEVICE)
                # It lies otherwise than its weight; so it is where there are gaps.
                w.grad = gradient if i == 5 else torch.empty_like(w).copy_(gradient)
            before = [wide(w) for w in weights]
            gradients = [wide(w.grad) for w in weights]
            optimizer.step()
            runs = penalty._formula_kernel.choice.engine.runs
            compiled = sum(run is not None for run in runs.values())
    assert (compiled > 0) == (kernels != "foreach")
    found = [wide(w.grad) for w in weights]
    return anchors, before, gradients, found, [wide(w) for w in weights]


def own_gradient(penalty, w, anchor):
    """Autograd's, in float64 on the CPU."""
    leaf = w.clone().requires_grad_()
    value = penalty.value(leaf, anchor) if isinstance(penalty, L2SP) else penalty.value(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return penalty.strength * gradient


def rounding(dtype, exact, *terms):
    """What may be lost: a few roundings of the terms where it is computed, one where it is kept."""
    computed = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    limits = torch.finfo(dtype)
    return 8 * computed * sum(t.abs() for t in terms) + limits.eps * exact.abs() + limits.tiny


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMULAS)
def test_a_gradient_is_that_of_autograd_in_float64(name, dtype):
    penalty = FORMULAS[name](where="all", delivery="step")
    anchors, before, gradients, found, _ = stepped(penalty, dtype, "triton")
    rows = zip(anchors, before, gradients, found, strict=True)
    for i, (anchor, w, g, own) in enumerate(rows):
        added = own_gradient(penalty, w, anchor)
        exact = g + added
        # The difference to an anchor loses what its terms do.
        allowed = rounding(dtype, exact, g, added, penalty.strength * w)
        if i in UNLIKE:
            # Torch rounds each term that it adds, such as that of the weight and of its anchor.
            allowed += torch.finfo(dtype).eps * (added.abs() + 2 * penalty.strength * w.abs())
        assert ((own - exact).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in FORMULAS if name != "log sum"])
def test_a_proximal_operator_is_that_of_the_formula_in_float64(name, dtype):
    penalty = FORMULAS[name](where="all", delivery="proximal")
    anchors, before, gradients, _, found = stepped(penalty, dtype, "triton")
    for anchor, w, g, own in zip(anchors, before, gradients, found, strict=True):
        # What the optimizer leaves is of the weights' dtype.
        updated = w.to(dtype).sub(g.to(dtype), alpha=LR).double()
        given = (updated, LR, anchor) if isinstance(penalty, L2SP) else (updated, LR)
        exact = penalty.proximal(*given)
        slack = torch.finfo(dtype).eps * updated.abs()  # an update may be rounded otherwise
        allowed = 2 * slack + rounding(dtype, exact, updated, torch.ones_like(updated))
        assert ((own - exact).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FORMULAS)
def test_in_the_loss_value_and_gradient_are_those_of_autograd_in_float64(name, dtype):
    weights = nn.ParameterList([nn.Parameter(w) for w in tensors(dtype, DEVICE)])
    anchors = [wide(w) for w in weights]
    penalty = FORMULAS[name](where="all", delivery="loss")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = regplug.attach(weights, None, [penalty], kernels="triton")
        with torch.no_grad():
            for w in weights:
                w.add_(0.5)
        start = torch.zeros((), dtype=dtype, device=DEVICE, requires_grad=True)
        loss = session.loss(start * 1.0)
        loss.backward()
        session.detach()
    total = torch.zeros((), dtype=torch.float64)
    for w, anchor in zip(weights, anchors, strict=True):
        leaf = wide(w)
        own = penalty.value(leaf, anchor) if isinstance(penalty, L2SP) else penalty.value(leaf)
        total += penalty.strength * own
        exact = own_gradient(penalty, leaf, anchor)
        terms = [exact, penalty.strength * leaf]
        if name == "log sum":  # its derivative is a difference, of terms such as this
            terms.append(penalty.strength * 2 * leaf / (0.01 + leaf.square()))
        allowed = rounding(dtype, exact, *terms)
        assert ((wide(w.grad) - exact).abs() <= allowed).all()
    torch.testing.assert_close(wide(loss), total, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("delivery", ["step", "proximal"])
@pytest.mark.parametrize("name", FORMULAS)
def test_it_is_what_torchs_own_operations_give(name, delivery, dtype):
    if name == "log sum" and delivery == "proximal":
        pytest.skip("it has no proximal operator")
    found, expected = (
        stepped(FORMULAS[name](where="all", delivery=delivery), dtype, kernels)[3:]
        for kernels in ("triton", "foreach")
    )
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e-12 if dtype == torch.float64 else 1e-6}
    if dtype in (torch.float16, torch.bfloat16):
        # Torch's operations round in between; a difference of two large numbers keeps that.
        close["atol"] = 4 * torch.finfo(dtype).eps
    for own, other in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
        torch.testing.assert_close(own, other, **close)


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, *FUSED])
@pytest.mark.parametrize("name", PENALTIES)
def test_a_proximal_operator_with_the_step_of_an_optimizer(name, optimizer):
    made = PENALTIES[name], {**OPTIMIZERS, **FUSED}[optimizer]
    on_it = {"delivery": "proximal", "device": DEVICE}
    expected, none = trained(*made, "foreach", **on_it)
    found, some = trained(*made, "triton", **on_it)
    assert none == 0
    assert some >= 1
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-11)
        assert torch.equal(own == 0, other == 0)


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, *FUSED])
@pytest.mark.parametrize("delivery", ["step", "proximal"])
def test_float32_is_as_near_to_float64_on_the_cpu_as_torch_is(delivery, optimizer):
    made = PENALTIES["elastic net"], {**OPTIMIZERS, **FUSED}[optimizer]
    exact_on = DEVICE if "capturable" in optimizer else "cpu"  # where a CPU refuses the flag
    exact, _ = trained(*made, "foreach", delivery=delivery, device=exact_on)
    narrow = {"delivery": delivery, "device": DEVICE}
    by_torch, _ = trained(*made, "foreach", torch.float32, **narrow)
    found, some = trained(*made, "triton", torch.float32, **narrow)
    assert some >= 1
    for own, torchs, wide_ in zip(found, by_torch, exact, strict=True):
        error = (own - wide_).abs().max() if own.numel() else torch.zeros(())
        allowed = (torchs - wide_).abs().max() if own.numel() else torch.zeros(())
        assert error <= 1.5 * allowed + 2e-7


def test_a_schedule_compiles_nothing_anew():
    def penalty(**settings):
        return L1(regplug.schedules.linear(0.01, 0.2, steps=5), **settings)

    settings = {"delivery": "proximal", "device": DEVICE}
    _, once = trained(PENALTIES["l1"], OPTIMIZERS["Adam"], "triton", steps=1, **settings)
    expected, _ = trained(penalty, OPTIMIZERS["Adam"], "foreach", steps=6, **settings)
    found, some = trained(penalty, OPTIMIZERS["Adam"], "triton", steps=6, **settings)
    assert some == once
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-11)
