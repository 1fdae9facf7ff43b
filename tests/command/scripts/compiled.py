"""A compiled model, one compiled in place, and a compiled loss function."""

import sys

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return x + self.drop(self.inner(x).relu())


torch.manual_seed(1)
how, output = sys.argv[1:]
net = nn.Sequential(Block(), Block(), nn.Linear(5, 1))
options = {"backend": "aot_eager", "fullgraph": True}
model = torch.compile(net, **options) if how == "wrapped" else net
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
x, y = torch.randn(10, 5), torch.randn(10, 1)


def loss_fn(x, y):
    return (model(x) - y).square().mean()


if how == "in place":
    net.compile(**options)
elif how == "function":
    loss_fn = torch.compile(loss_fn, **options)
for _ in range(4):
    optimizer.zero_grad()
    loss = loss_fn(x, y)
    loss.backward()
    optimizer.step()

torch.save(net.state_dict(), output)
