"""Under torch's own watch no step of a built-in plugin has the host wait for the GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import regplug

PENALTIES = ["l1", "l2", "elastic_net", "group_lasso", "l2_sp", "orthogonal", "spectral_norm"]
NO_PROXIMAL = ("orthogonal", "spectral_norm")
SPECS = [
    f"{name}({'0.1, 0.1' if name == 'elastic_net' else '0.1'}, delivery={delivery!r})"
    for name in PENALTIES
    for delivery in ("step", "loss", "proximal")
    if not (delivery == "proximal" and name in NO_PROXIMAL)
] + [
    "l1(linear(0.1, 0.2, steps=3), delivery='proximal')",
    "group_lasso(0.1, groups='columns', delivery='proximal')",
    "weight_decay(0.1, existing='replace')",
    "weight_decay(0.1, existing='replace', cautious=True)",
    *("max_norm(0.5)", "max_norm(0.5, groups='columns')", "unit_norm()", "non_negative()"),
    *("l1_ball(0.5)", "l1_ball(1000)", "hard_threshold(0.5)", "gradient_noise(0.1)"),
    "dropout(linear(0.5, 0.1, steps=4))",
    "drop_path(linear(0, 0.2, steps=3))",
    "activity(0.1, 0.1)",
]
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5),
    "fused Adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "capturable Adam": lambda p: torch.optim.Adam(p, lr=0.01, capturable=True),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01, capturable=True),
}


class StochasticDepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = 0.2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def network() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 40), nn.Dropout(0.1)]
    return nn.Sequential(*layers, StochasticDepth(), nn.Linear(40, 3)).cuda()


@pytest.mark.parametrize("kernels", ["auto", "foreach"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("spec", SPECS)
def test_no_step_waits(spec: str, optimizer: str, kernels: str) -> None:
    model = network()
    stepping = OPTIMIZERS[optimizer](model.parameters())
    x = torch.randn(4, 3, 8, 8, device="cuda")
    in_loss = "'loss'" in spec or "activity" in spec
    with regplug.attach(model, stepping, [spec], kernels=kernels) as session:

        def step() -> None:
            stepping.zero_grad()
            loss = model(x).square().mean()
            loss = session.loss(loss) if in_loss else loss
            loss.backward()
            stepping.step()

        for _ in range(2):  # new kernels are compared with torch's operations, which waits
            step()
        with no_waiting():
            for _ in range(3):
                step()
        assert session.steps == 5


def test_the_watch_does_see_what_waits() -> None:
    x = torch.ones(3, device="cuda")
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        x.sum().item()
