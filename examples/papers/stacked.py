"""Networks that differ in nothing but their seed, trained as one.

A layer holds the weights of all of them, with a leading dimension of networks. What acts element
by element, as Adam, L2 and weight decay do, acts on each network as if it were alone, so one call
of ``step()`` serves all seeds, and one plugin with them.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


class Linear(nn.Module):
    """One ``nn.Linear`` for each seed, started as that starts: (seeds, rows, inputs) → outputs."""

    def __init__(self, seeds: Sequence[int], inputs: int, outputs: int) -> None:
        super().__init__()
        draws = [draw(seed, inputs + 1, outputs) * inputs**-0.5 for seed in seeds]
        both = torch.stack(draws)
        self.weight = nn.Parameter(both[:, :-1].clone())
        self.bias = nn.Parameter(both[:, -1:].clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


def draw(seed: int, *shape: int) -> torch.Tensor:
    """Return numbers between −1 and 1 that only the seed and the shape decide."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def losses(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return each network's mean cross-entropy, shape (seeds,)."""
    return F.cross_entropy(output.transpose(1, 2), target, reduction="none").mean(1)


def accuracies(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return what each network gets right, in percent, shape (seeds,)."""
    return 100 * (output.argmax(2) == target).float().mean(1)
