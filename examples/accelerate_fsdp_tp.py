"""Weights sharded twice, by FSDP2 and by tensor parallelism: the same table as on one process.

    torchrun --nproc_per_node 4 examples/accelerate_fsdp_tp.py
    python examples/accelerate_fsdp_tp.py

Four processes are a mesh of 2×2, of Accelerate's ``ParallelismConfig``: each row of weights is on
one process of two, and each half of it on one of two again. The Accelerator itself takes such a
configuration on GPUs alone, and then calls ``fully_shard`` for you; here torch does it, on CPUs
too. What is shown is of whole weights, and the same on every process.
"""

import argparse
from collections.abc import Sequence

import torch
import torch.distributed as dist
from accelerate.parallelism_config import ParallelismConfig
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.distributed import DeviceMesh
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.functional import nll_loss

import regplug

VARIANTS = {
    "plain": [],
    "weight decay": ["weight_decay(0.05)"],
    "l1, exact zeros": ["l1(linear(0, 2e-3, steps=16), delivery='proximal')"],
    "bounded units": ["max_norm(0.6)"],
}
BATCH = 128


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Linear(64, 128), nn.ReLU()),
        nn.Sequential(nn.Linear(128, 64), nn.ReLU()),
        nn.Sequential(nn.Linear(64, 10), nn.LogSoftmax(-1)),  # 10 rows over 4: uneven parts
    )


def sharded(model: nn.Sequential, mesh: DeviceMesh) -> nn.Module:
    whole = ColwiseParallel(output_layouts=Replicate())
    plan = {"0.0": ColwiseParallel(), "1.0": RowwiseParallel(), "2.0": whole}
    parallelize_module(model, mesh["tp"], plan)
    for layer in model:
        fully_shard(layer, mesh=mesh["dp_shard"])
    return fully_shard(model, mesh=mesh["dp_shard"])


def digits() -> list[torch.Tensor]:
    """Images and labels: 1,024 to train on, 773 to test."""
    found = load_digits()
    images = torch.tensor(found.data, dtype=torch.float32) / 16
    return train_test_split(images, torch.tensor(found.target), train_size=1024, random_state=0)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--save", help="a file for the last variant's final weights")
    args = parser.parse_args(arguments)

    launched = dist.is_torchelastic_launched()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if launched:
        dist.init_process_group()
        if device == "cuda":
            torch.cuda.set_device(dist.get_node_local_rank())
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    mesh, part = None, slice(None)
    if ranks > 1:
        config = ParallelismConfig(tp_size=2, dp_shard_size=ranks // 2)
        mesh = config.get_device_mesh(device)
        # Processes that hold a layer together see the same images.
        part = slice(dist.get_rank() // 2, None, ranks // 2)
    first = ranks == 1 or dist.get_rank() == 0

    train_x, test_x, train_y, test_y = [tensor.to(device) for tensor in digits()]
    if first:
        print(f"{'':16} accuracy   zeros    norm   sharded as")
    for name, plugins in VARIANTS.items():
        torch.manual_seed(0)
        model = network().to(device)
        if mesh is not None:
            sharded(model, mesh)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        # Beside what is tried: of strength 0, it acts on nothing and shows all weights' figures.
        watched = [*plugins, "l2(0, name='all')"]
        with regplug.attach(model, optimizer, watched) as session:
            for epoch in range(args.epochs):
                order = torch.randperm(len(train_x), generator=torch.Generator().manual_seed(epoch))
                for chosen in order.to(device).split(BATCH):
                    own = chosen[part]
                    optimizer.zero_grad()
                    nll_loss(model(train_x[own]), train_y[own]).backward()
                    optimizer.step()
            zeros = session.metrics()["all/zeros"]  # on every process
        with torch.no_grad():
            right = (model(test_x).argmax(1) == test_y).float().mean().item()
        weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        norm = sum(w.square().sum().item() for w in weights.values()) ** 0.5 if first else 0.0
        placed = getattr(model[0][0].weight, "placements", "one tensor")
        if first:
            print(f"{name:16} {100 * right:6.1f} % {100 * zeros:5.1f} % {norm:7.2f}   {placed}")
    if args.save and first:
        torch.save(weights, args.save)
    if launched:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
