"""Models for the exam, of plugins that find nothing in its own."""

import torch
from torch import nn

__all__ = ["adapted"]


class _Adapted(nn.Module):
    """A frozen linear layer with a low-rank adapter beside it, named as torchtune's are."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs, requires_grad=False)
        self.rank, self.alpha = 3, 6.0
        self.lora_a = nn.Linear(inputs, self.rank, bias=False)
        self.lora_b = nn.Linear(self.rank, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low: torch.Tensor = self.lora_b(self.lora_a(x))
        return x @ self.weight.T + self.alpha / self.rank * low


def adapted() -> nn.Module:
    """Return two layers with adapters and a head, from ``(N, 6)`` to ``(N, 1)``."""
    return nn.Sequential(_Adapted(6, 7), nn.Tanh(), _Adapted(7, 5), nn.Tanh(), nn.Linear(5, 1))
