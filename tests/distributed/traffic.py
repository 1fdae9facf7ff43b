"""The collectives that plugins add to a step, counted at each rank: kinds, ranks and bytes.

Groups of 1, 2 and 4 ranks are real ones. A group of 1,000 is torch's fake one: rank 0 runs as it
would there, with the shapes that it would have, and nothing is sent.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils._python_dispatch import TorchDispatchMode

import regplug
from regplug.backend import others
from tests.helpers.meshes import data_and_model, mesh_of

THOUSAND = 1000


class Made(NamedTuple):
    """One collective.

    Attributes:
        kind: ``"sum"`` for an all-reduce, ``"gather"`` for an all-gather, or torch's own name.
        ranks: how many take part.
        bytes: what each of them has in the end.
    """

    kind: str
    ranks: int
    bytes: int


KINDS = {
    "allreduce_": "sum",
    "all_reduce": "sum",
    "_allgather_base_": "gather",
    "all_gather_into_tensor": "gather",
    "_reduce_scatter_base_": "scatter",
}


class Traffic(TorchDispatchMode):
    """Takes note of each collective under it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Made] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # what it does to the parts comes here in turn
        result = func(*args, **(kwargs or {}))
        name = func.name().partition("::")[2].partition(".")[0]
        if func.namespace == "c10d":
            self.made.append(Made(KINDS.get(name, name), _size(args), _bytes(args[0])))
        elif func.namespace == "_c10d_functional" and name not in ("wait_tensor", _WRAPPING):
            group = torch.distributed.distributed_c10d._resolve_process_group(args[-1])
            self.made.append(Made(KINDS.get(name, name), group.size(), _bytes(result)))
        return result


_WRAPPING = "_wrap_tensor_autograd"


def _size(args: Sequence[Any]) -> int:
    (group,) = (
        dist.ProcessGroup.unbox(a)
        for a in args
        if isinstance(a, torch.ScriptObject) and "ProcessGroup" in str(a._type())
    )
    return int(group.size())


def _bytes(out: Any) -> int:
    tensors = [out] if isinstance(out, torch.Tensor) else out
    return int(sum(t.numel() * t.element_size() for t in tensors))


# --- engines -----------------------------------------------------------------------------------


class Engine(NamedTuple):
    """How weights are spread: ``data`` × ``model`` ranks, each dimension as it is called."""

    name: str
    data: int = 1
    model: int = 1


SIZES = (8, 16, 8, 4)
"""Of the layers' rows and columns; the first is what goes in."""

UNEVEN = (6, 7, 3, 1)


def make(sizes: Sequence[int]) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for columns, rows in pairwise(sizes):
        layers += [nn.Linear(columns, rows), nn.Tanh()]
    return nn.Sequential(*layers[:-1], nn.Dropout(0.5))


def spread(model: nn.Sequential, engine: Engine) -> nn.Module:
    name, data, tensor = engine
    if name in ("TP", "FSDP2 × TP"):
        mesh = data_and_model(data, tensor)["tp"]
        plan = {
            "0": ColwiseParallel(use_local_output=False),
            "2": RowwiseParallel(),
            "4": ColwiseParallel(output_layouts=Replicate()),
        }
        parallelize_module(model, mesh, plan)
    if name == "DDP":
        return nn.parallel.DistributedDataParallel(model)
    if name in ("FSDP2", "HSDP", "FSDP2 × TP"):
        if name == "FSDP2 × TP":
            mesh = data_and_model(data, tensor)["dp"]
        else:
            mesh = mesh_of(data) if name == "FSDP2" else mesh_of(data, tensor)
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


# --- counted -----------------------------------------------------------------------------------


class Event(NamedTuple):
    """What is counted: plugins, an optimizer, and whether it is a step or metrics."""

    plugins: Sequence[str]
    optimizer: str = "SGD"
    metrics: bool = False


def one(model: nn.Module, columns: int, event: Event) -> Counter[Made]:
    """Return what a step, or metrics, makes."""
    kind = getattr(torch.optim, event.optimizer)
    optimizer = kind(model.parameters(), lr=0.01, foreach=False)
    step, shown = Traffic(), Traffic()
    with regplug.attach(model, optimizer, list(event.plugins)) as session:
        with step:
            loss = session.loss(model(torch.ones(4, columns)).square().mean())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with shown:
            if event.metrics:
                session.metrics()
    return Counter(shown.made if event.metrics else step.made)


def counted(
    rank: int, engine: Engine, sizes: Sequence[int], events: dict[str, Event]
) -> dict[str, Counter[Made]]:
    """Return what each event adds to what the engine makes itself, which goes under ``""``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FSDP2 tells of views that nobody writes to
        model, columns = spread(make(sizes), engine), sizes[0]
        for _ in range(2):  # sets up what stays; the second has DDP's buckets made anew
            one(model, columns, Event(()))
        bare = {name: one(model, columns, Event((), name)) for name in ("SGD", "Adam")}
        found = {"": bare["SGD"]}
        for label, event in events.items():
            made = one(model, columns, event)
            if not event.metrics:
                own = bare[event.optimizer]
                assert own <= made, label
                made -= own
            found[label] = made
    return found


def counted_of_a_thousand(
    rank: int, engines: Sequence[Engine], sizes: Sequence[int], events: dict[str, Event]
) -> list[dict[str, Counter[Made]]]:
    """The same on rank 0 of 1,000, in one process that has no group yet."""
    from torch.testing._internal.distributed import fake_pg

    assert fake_pg.FakeStore is not None  # its import makes the backend known
    store = dist.HashStore()
    dist.init_process_group("fake", rank=0, world_size=THOUSAND, store=store)
    everyone = hash(tuple(range(THOUSAND)))
    for number in range(1, 2 * THOUSAND):  # all the others are there
        prefix = f"regplug/regplug/{everyone}/{number}"
        others.prefixed_store(prefix).add("arrived", THOUSAND - 1)
    try:
        return [counted(0, engine, sizes, events) for engine in engines]
    finally:
        dist.destroy_process_group()
