"""Data-parallel training: alone, or by torchrun."""

import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


class ToyModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net1 = torch.nn.Linear(6, 8)
        self.norm = torch.nn.LayerNorm(8)
        self.net2 = torch.nn.Linear(8, 2)

    def forward(self, x):
        return self.net2(self.norm(self.net1(x)).relu())


class Trainer:
    def __init__(self, model, data, optimizer):
        self.model, self.data, self.optimizer = model, data, optimizer

    def train(self, epochs):
        for epoch in range(epochs):
            self.data.sampler.set_epoch(epoch)
            for source, targets in self.data:
                self.optimizer.zero_grad()
                torch.nn.functional.mse_loss(self.model(source), targets).backward()
                self.optimizer.step()


def main():
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if world > 1 else 0
    torch.manual_seed(0)
    model = ToyModel().double()
    dataset = TensorDataset(torch.randn(32, 6).double(), torch.randn(32, 2).double())
    sampler = DistributedSampler(dataset, num_replicas=world, rank=rank, shuffle=False)
    loader = DataLoader(dataset, batch_size=16 // world, sampler=sampler)
    wrapped = DDP(model) if world > 1 else model
    trainer = Trainer(wrapped, loader, torch.optim.Adam(wrapped.parameters(), lr=1e-2))
    trainer.train(4)
    if rank == 0:
        torch.save(model.state_dict(), sys.argv[1])
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
