"""Kernels of rows on the GPU, against torch's own operations in float64 on the CPU."""

import copy
import warnings

import pytest
import torch
from torch import nn

import regplug

SPECS = [
    f"{name}groups={groups!r}{rest})"
    for groups in ("rows", "columns")
    for name, rest in (
        ("max_norm(1.0, ", ""),
        ("unit_norm(", ""),
        ("group_lasso(0.05, ", ", delivery='step'"),
        ("group_lasso(0.05, ", ", delivery='proximal'"),
    )
]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleList(
        [
            nn.Linear(700, 300),
            nn.Linear(3000, 7),
            nn.Conv2d(16, 32, 3),
            nn.ConvTranspose2d(16, 8, 3),
            nn.Conv2d(8, 16, 3).to(memory_format=torch.channels_last),
        ]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("adam", [False, True], ids=["SGD", "Adam"])
@pytest.mark.parametrize("spec", SPECS)
def test_rows_are_as_torch_has_them(spec: str, adam: bool, dtype: torch.dtype) -> None:
    start = network().to(dtype)
    found: list[list[torch.Tensor]] = []
    for device, kernels, own in (("cuda", "triton", dtype), ("cpu", "foreach", torch.float64)):
        model = copy.deepcopy(start).to(own).to(device)
        optimizer = (
            torch.optim.Adam(model.parameters(), lr=0.01, eps=1e-3)
            if adam
            else torch.optim.SGD(model.parameters(), lr=0.1)
        )
        generator = torch.Generator().manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with regplug.attach(model, optimizer, [spec], kernels=kernels):
                for _ in range(3):
                    for w in model.parameters():
                        drawn = torch.randn(w.shape, generator=generator).to(dtype)
                        w.grad = torch.empty_like(w).copy_(drawn)
                    optimizer.step()
        found.append([w.detach().cpu().double() for w in model.parameters()])
    for w, exact in zip(*found, strict=True):
        scale = exact.abs().max()
        assert (w - exact).abs().max() <= 64 * torch.finfo(dtype).eps * scale
