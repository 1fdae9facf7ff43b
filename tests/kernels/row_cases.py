"""Weights whose rows lie in every way, and strangers' formulas of rows, for tests of kernels."""

import warnings

import torch
from torch import nn

import regplug

F64 = torch.float64
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.5),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.02, eps=1e-3, amsgrad=True),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.02, betas=(0.9, 0.7)),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.02, centered=True),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
}


LONG = {"foreach": 2, "triton": 2, "numba": 40}
"""Groups that are long: a CPU's kernels are for weights that are not few and small."""


class Layers(nn.Module):
    """Weights whose rows lie in every way: whole, strided, in runs, and as no view at all."""

    def __init__(self, dtype, groups="rows", long=2):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.linear = nn.Linear(7, 5)
        # Groups that are read in pieces. They are few: the interpreter takes its time for each.
        self.long = nn.Linear(1030, long) if groups == "rows" else nn.Linear(long, 1030)
        self.filters = nn.Conv2d(3, 4, 3)
        self.last = nn.Conv2d(4, 3, 2).to(memory_format=torch.channels_last)
        self.turned = nn.ConvTranspose1d(4, 3, 2)
        self.grouped = nn.Conv1d(4, 6, 3, groups=2)
        self.both = nn.ConvTranspose1d(4, 6, 2, groups=2)
        self.nothing = nn.Embedding(4, 3)
        for p in self.parameters():
            p.data.copy_(torch.randn(p.shape, generator=generator))
        self.nothing.weight.data.zero_()
        self.to(dtype)
        spread = torch.randn(6, 16, generator=generator).to(dtype)[:, ::2]
        self.spread = nn.Linear(8, 6, bias=False)
        self.spread.weight = nn.Parameter(spread)


def trained(plugin, optimizer, kernels, dtype=torch.float32, steps=2, like=None):
    """Return the weights after some steps, and the kernel that worked on rows."""
    model = Layers(dtype, plugin.groups, LONG[like or kernels])
    stepping = optimizer(model.parameters())
    generator = torch.Generator().manual_seed(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a kernel that is not used says so
        with regplug.attach(model, stepping, [plugin], kernels=kernels):
            for _ in range(steps):
                for w in model.parameters():
                    drawn = torch.randn(w.shape, generator=generator).to(dtype)
                    w.grad = torch.empty_like(w).copy_(drawn)
                model.linear.weight.grad = None
                stepping.step()
            constraint = getattr(plugin, "_rows", None)
            kernel = constraint[1] if constraint else plugin._formula_kernel.rows
    return [w.detach() for w in model.parameters()], kernel


def check_by(kernels, make, optimizer, dtype=torch.float32):
    """Train by one compiler, by torch, and by torch in float64, and compare."""
    found, kernel = trained(make(), optimizer, kernels, dtype)
    assert kernel.engine.why_not is None
    assert kernel.engine.runs
    assert None not in kernel.engine.runs.values()
    torchs, _ = trained(make(), optimizer, "foreach", dtype, like=kernels)
    expected, _ = trained(make(), optimizer, "foreach", F64, like=kernels)
    for own, other, exact in zip(found, torchs, expected, strict=True):
        # As near to the exact ones as torch's own are, but for the order in which it sums up.
        error = (own.double() - exact).abs().max()
        rounding = torch.finfo(dtype).eps * exact.abs().max()
        assert error <= 3 * (other.double() - exact).abs().max() + 8 * rounding
        if dtype in (torch.float32, F64):
            assert torch.equal(own == 0, exact == 0)


class Ridges(regplug.Penalty):
    """A stranger's: λ·Σ √n·log(1 + mean of squares), of filters; its formula flattens them."""

    orientation = "rows"

    def value(self, w):
        flat = w.flatten(1)
        return flat.square().mean(1).log1p().sum()

    def gradient(self, w):
        flat = w.flatten(1)
        inside = 1 + flat.square().mean(1, keepdim=True)
        return (2 * flat / (flat.shape[1] * inside)).view_as(w)


class Least(regplug.Plugin):
    """A stranger's constraint: no row's elements are further from its mean than a bound."""

    def __init__(self, bound):
        self.bound, self.selection = bound, regplug.Selection("weights")

    def kept(self, w):
        mean = w.mean(dim=1, keepdim=True)
        return torch.minimum(torch.maximum(w, mean - self.bound), mean + self.bound)

    @regplug.hookimpl
    def on_attach(self, session):
        self.rows = regplug.RowKernel(self.name, "rows", session.kernels)

    @regplug.hookimpl
    def after_step(self, session):
        for _, weights, _ in session.updates(self.selection):
            self.left = self.rows.apply(self.kept, [weights])
            for row in self.left:
                weights[row].copy_(self.kept(weights[row]))
