"""An optimizer over two tensors that no module holds."""

import sys

import torch

torch.manual_seed(0)
x, y = torch.randn(50, 3), torch.randn(50)
weight = torch.randn(3, 1, requires_grad=True)
bias = torch.zeros(1, requires_grad=True)
optimizer = torch.optim.SGD([weight, bias], lr=0.1)
for _ in range(10):
    optimizer.zero_grad()
    ((x @ weight + bias).squeeze(1) - y).pow(2).mean().backward()
    optimizer.step()

torch.save([weight, bias], sys.argv[1])
