"""What the checks import and set up, done once, so that no copy of this process does it again."""

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["warm"]


def warm(checks: Sequence[str]) -> None:
    """Load what these checks need, unless it was loaded before."""
    importlib.import_module("torch._dynamo")  # which the first optimizer of a process does
    if "checkpoint-step" in checks:
        import torch.distributed.checkpoint.state_dict  # noqa: F401
    if "compile" in checks:
        _compiler()


@functools.cache
def _compiler() -> None:
    """Let torch's compiler load its parts, which it does when it first meets a model."""

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        return graph.forward

    layers = (nn.Linear(2, 2), nn.LayerNorm(2), nn.Tanh(), nn.Dropout(0.5))
    with torch.random.fork_rng(devices=[]):
        model = torch.compile(nn.Sequential(*layers), backend=backend)
        model(torch.zeros(1, 2)).sum().backward()
