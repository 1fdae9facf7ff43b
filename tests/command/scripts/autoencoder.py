"""Two modules without a roof, one optimizer over both, and a loss that learns too."""

import itertools
import sys

import torch
from torch import nn

torch.manual_seed(4)
encoder = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.2))
decoder = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.1))
temperature = torch.zeros(1, requires_grad=True)
optimizer = torch.optim.Adam(
    [*itertools.chain(encoder.parameters(), decoder.parameters()), temperature], lr=1e-2
)
x = torch.randn(16, 6)
for _ in range(6):
    optimizer.zero_grad()
    loss = ((decoder(encoder(x)) - x) ** 2).mean() * torch.exp(
        -temperature
    ).sum() + temperature.sum()
    loss.backward()
    optimizer.step()

torch.save([encoder.state_dict(), decoder.state_dict(), temperature], sys.argv[1])
