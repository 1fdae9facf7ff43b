"""One script on one process or many, with the same weights in the end.

    python examples/accelerate_ddp.py
    torchrun --nproc_per_node 2 examples/accelerate_ddp.py
    accelerate launch examples/accelerate_ddp.py

Accelerate starts DDP or FSDP2 as its configuration says; the lines of regplug stay as they are.
Each batch is split over the processes, so all ways take the same steps.
"""

import argparse

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import regplug


def data(samples: int = 512, features: int = 20) -> TensorDataset:
    """Only the first four features matter."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, features, generator=generator)
    noise = 0.1 * torch.randn(samples, generator=generator)
    return TensorDataset(x, x[:, 0] - x[:, 1] + (x[:, 2] * x[:, 3]).tanh() + noise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--save", help="a file for the final weights")
    args = parser.parse_args()

    cpu = not torch.cuda.is_available()
    splitting = DataLoaderConfiguration(split_batches=True)
    accelerator = Accelerator(cpu=cpu, dataloader_config=splitting)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    loader = DataLoader(data(), batch_size=64)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    l1 = "l1(linear(0, 0.01, steps=40), delivery='proximal')"
    session = regplug.attach(model, optimizer, [l1, "weight_decay(0.01)"], accelerator=accelerator)
    for epoch in range(args.epochs):
        for x, y in loader:
            loss = nn.functional.mse_loss(model(x).squeeze(-1), y)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        metrics = session.metrics()  # on every process: only the printing is the main one's
        mean = accelerator.gather(loss.detach()).mean().item()
        accelerator.print(f"epoch {epoch:2d}  loss {mean:.4f}", *shown(metrics), sep="  ")

    accelerator.print(f"{accelerator.distributed_type}, {accelerator.num_processes} processes")
    accelerator.print(session.describe())
    weights = accelerator.get_state_dict(model)
    if args.save and accelerator.is_main_process:
        torch.save(weights, args.save)
    accelerator.end_training()


def shown(metrics: dict[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in metrics.items()]


if __name__ == "__main__":
    main()
