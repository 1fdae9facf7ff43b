"""A compiled model; run by python -m as well."""

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
net = nn.Sequential(Block(), Block(), nn.Linear(5, 1))
compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
optimizer = torch.optim.SGD(compiled.parameters(), lr=0.05, momentum=0.9, nesterov=True)
x, y = torch.randn(10, 5), torch.randn(10, 1)
for _ in range(4):
    optimizer.zero_grad()
    loss = (compiled(x) - y).square().mean()
    loss.backward()
    optimizer.step()

torch.save(net.state_dict(), sys.argv[1])
