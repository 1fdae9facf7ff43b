"""FSDP2, started by torchrun; alone it trains the same model in one process."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


def main():
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    x, y = torch.randn(8, 6).double(), torch.randn(8, 3).double()
    if world > 1:
        dist.init_process_group("gloo")
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    share = slice(rank * 8 // world, (rank + 1) * 8 // world)
    with torch.no_grad():
        model.eval()
        model(x[share])  # a look before the training begins
        model.train()
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[share]), y[share]).backward()
        optimizer.step()
    weights = {
        name: p.full_tensor() if isinstance(p, DTensor) else p.detach()
        for name, p in model.named_parameters()
    }
    if rank == 0:
        torch.save(weights, sys.argv[1])
    if world > 1 and "keep" not in sys.argv:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
