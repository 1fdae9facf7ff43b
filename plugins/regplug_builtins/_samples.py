"""Models for the exam, of plugins that find nothing in its own."""

import torch
from torch import nn

__all__ = ["adapted", "with_criterion"]


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


class _Judged(nn.Module):
    """A classifier that adds to its output what its own criterion says of it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 4), nn.Linear(4, 1)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.05)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.inner(x)
        # A row at a time, so that a batch may be cut in parts.
        classes = torch.arange(4, device=x.device).expand(len(x), 4)
        judged = torch.stack(
            [self.criterion(row[None], c[:1]) for row, c in zip(logits, classes, strict=True)]
        )
        out: torch.Tensor = self.head(logits) + judged[:, None]
        return out


def with_criterion() -> nn.Module:
    """Return a model from ``(N, 6)`` to ``(N, 1)`` that has a criterion of its own."""
    return _Judged()
