"""Formulas, optimizers and layouts of weights, for tests of compiled kernels on any device."""

import warnings

import torch
from torch import nn

import regplug
from regplug_builtins import L1, L2, L2SP, ElasticNet


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


def tensors(dtype=torch.float64, device="cpu"):
    """Weights of every kind of layout, 40,000 elements and more together."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape):
        # They are views of what lies on the device: a copy of a view would lie otherwise.
        wide = torch.randn(shape, generator=generator, dtype=torch.float64)
        return wide.to(dtype).to(device)

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
        torch.zeros(9, 5, dtype=dtype, device=device),
    ]


def trained(penalty, optimizer, kernels, dtype=torch.float64, *, steps=3, device="cpu", **settings):
    """Return the weights after some steps, on the CPU, and how many kernels were compiled."""
    weights = nn.ParameterList([nn.Parameter(w) for w in tensors(dtype, device)])
    assert [w.stride() for w in weights] == [w.stride() for w in tensors(dtype)]
    stepping = optimizer(weights.parameters())
    generator = torch.Generator().manual_seed(2)
    attached = penalty(where="all", **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a kernel that is not used says so
        with regplug.attach(weights, stepping, [attached], kernels=kernels, handover=False):
            for _ in range(steps):
                for i, w in enumerate(weights):
                    wide = torch.randn(w.shape, generator=generator, dtype=torch.float64)
                    drawn = wide.to(dtype).to(device)
                    # One gradient lies otherwise than its weight.
                    w.grad = drawn if i == 5 else torch.empty_like(w).copy_(drawn)
                weights[3].grad = None
                stepping.step()
            runs = attached._formula_kernel.choice.engine.runs
            compiled = [run for run in runs.values() if run is not None]
    return [w.detach().cpu().clone() for w in weights], len(compiled)
