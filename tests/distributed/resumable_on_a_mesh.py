"""A run on a 2×2 mesh that goes on from its last checkpoint. Run by test_resume_on_a_mesh.py.

python resumable_on_a_mesh.py FOLDER STEPS
"""

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import regplug
from regplug.integrations.checkpoint import stateful
from tests.distributed.resumable import last
from tests.helpers.meshes import data_and_model
from tests.helpers.penalties import Remembers

PLUGINS = [
    "l1(linear(0, 0.05, steps=20), delivery='proximal')",
    "l2_sp(cosine(0.1, 0, steps=30), where='all')",
    "group_lasso(0.01, delivery='step')",
    "gradient_noise(0.01)",
    "weight_decay(cosine(0.2, 0, steps=20))",
    "dropout(linear(0.5, 0.1, steps=20))",
]


def made() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.Dropout(0.3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    mesh = data_and_model(2, 2)
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    return model


def main(folder: Path, steps: int) -> None:
    rank = dist.get_rank()
    torch.manual_seed(rank // 2)  # dropout is alike on ranks that have the same rows
    model = made()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, foreach=False)
    remembers = Remembers()
    session = regplug.attach(model, optimizer, [*PLUGINS, remembers])

    def state() -> dict[str, Any]:
        weights, moments = get_state_dict(model, optimizer)
        return {"model": weights, "optimizer": moments, "regplug": stateful(session)}

    if (saved := last(folder)) is not None:
        found = state()
        checkpoint.load(found, checkpoint_id=saved)
        set_state_dict(
            model,
            optimizer,
            model_state_dict=found["model"],
            optim_state_dict=found["optimizer"],
        )
        torch.set_rng_state(torch.load(saved / f"rng-{rank}", weights_only=True))
    while session.steps < steps:
        generator = torch.Generator().manual_seed(10 * session.steps + rank // 2)
        x = torch.randn(4, 6, generator=generator)
        (model(x) - x[:, :4]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if session.steps % 2 == 0:
            save(folder, session.steps, rank, state())
        if rank == 0:
            (folder / "progress").write_text(str(session.steps))
    tell(folder, rank, model, remembers, session)


def save(folder: Path, step: int, rank: int, state: dict[str, Any]) -> None:
    unfinished = folder / f"unfinished-{step}"
    if rank == 0:  # of a run that was killed while it wrote
        shutil.rmtree(unfinished, ignore_errors=True)
    dist.barrier()
    checkpoint.save(state, checkpoint_id=unfinished)
    torch.save(torch.get_rng_state(), unfinished / f"rng-{rank}")
    dist.barrier()
    if rank == 0:
        unfinished.replace(folder / f"step-{step}")
    dist.barrier()


def tell(folder: Path, rank: int, model: nn.Module, remembers: Any, session: Any) -> None:
    metrics = session.metrics()
    weights = {name: p.detach().full_tensor().tolist() for name, p in model.named_parameters()}
    remembered = {name: w.tolist() for name, w in remembers._sums.items()}
    own = folder / f"unfinished-result-{rank}"
    own.write_text(json.dumps([weights, remembered, metrics]))
    own.replace(folder / f"result-{rank}.json")
    dist.barrier()
    if rank == 0:
        every = [(folder / f"result-{r}.json").read_text() for r in range(4)]
        (folder / "result.json").write_text("\n".join(every))
    session.detach()


def on_rank(rank: int, folder: str, steps: int) -> None:
    """The same run in processes that stand already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(Path(folder), steps)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    main(Path(sys.argv[1]), int(sys.argv[2]))
