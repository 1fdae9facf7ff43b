"""A small network, its data, and what penalties do to it, written out."""

import torch
from torch import nn

# λ₁·Σ|w| + λ₂·Σw² covers all three.
PENALTIES = {
    "l1": ("0.3", 0.3, 0.0),
    "l2": ("0.2", 0.0, 0.2),
    "elastic_net": ("0.3, 0.2", 0.3, 0.2),
}
LR = 0.05


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 3, bias=False)
        self.double()
        with torch.no_grad():
            self.second.weight[0, :3] = 0.0  # where L1 has a kink

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def data(count=8):
    generator = torch.Generator().manual_seed(2)
    shape = {"generator": generator, "dtype": torch.float64}
    return torch.randn(count, 4, **shape), torch.randn(count, 3, **shape)


def objective(model, x, y):
    return (model(x) - y).square().mean()


def value(w, l1, l2):
    """Return λ₁·Σ|w| + λ₂·Σw², written out."""
    return l1 * w.abs().sum() + l2 * (w * w).sum()


def gradient(w, l1, l2):
    return l1 * w.sign() + 2 * l2 * w


def proximal(w, step, l1, l2):
    return w.sign() * (w.abs() - step * l1).clamp(min=0) / (1 + 2 * step * l2)


def spec(name, delivery, **more):
    return f"{name}({PENALTIES[name][0]}, delivery='{delivery}'{more.get('more', '')})"


def weights_of(model):
    return [w for w in model.parameters() if w.ndim == 2]
