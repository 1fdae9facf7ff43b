"""Small networks, each the same whenever it is made."""

import itertools

import torch
from torch import nn


def one_layer(*weights: float, dtype: torch.dtype = torch.float64) -> nn.Linear:
    """Return a layer of one output, without a bias, that has these weights."""
    model = nn.Linear(len(weights), 1, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights]))
    return model


def dropout_net(rate: float = 0.0, seed: int = 0) -> nn.Sequential:
    """Return two layers with a dropout between them."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(rate), nn.Linear(4, 1))


def tanh_net(*widths: int) -> nn.Sequential:
    """Return layers of these widths, with a tanh between each two."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers += [*([nn.Tanh()] if number else []), nn.Linear(inputs, outputs)]
    return nn.Sequential(*layers)


def norm_net(between: nn.Module) -> nn.Sequential:
    """Return two layers with a norm between them, and what is given."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), between, nn.Linear(8, 2))
