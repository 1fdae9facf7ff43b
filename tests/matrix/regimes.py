"""Ways of training one small model: each takes a spec and returns the weights that came out.

A regime states its *task* (the optimizer, the micro-batches of each step, clipping, the data) and
runs it in its own way: in parts, on two ranks, sharded, compiled, by hand. The reference computes
what the task alone says, so all regimes of one task must give the same weights.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import mse_loss

import regplug
from regplug.discovery import catalog

BATCH = 8


class StochasticDepth(nn.Module):
    """Leaves out whole samples, by an attribute of the name that models use."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_prob = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        kept = torch.rand(len(x), 1, dtype=x.dtype) >= self.drop_prob
        return x * kept / (1 - self.drop_prob)


class Net(nn.Module):
    """Rows of 7, 3 and 1: uneven shards on two ranks, and one that is empty.

    It has one of each kind of module that plugins act on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.norm = nn.LayerNorm(7)
        self.act = nn.Tanh()
        self.drop = nn.Dropout(0.0)
        self.second = nn.Linear(7, 3)
        self.path = StochasticDepth()
        self.gate = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.path(self.second(self.drop(self.act(self.norm(self.first(x))))))
        return out * torch.sigmoid(self.gate(out))


class Sum(nn.Module):
    """Layers side by side, whose gradients do not depend on the weights.

    With inputs and targets of few bits they are exact in bfloat16, so that half precision is put
    to the same test as all else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.drop = nn.Dropout(0.0)
        self.second = nn.Linear(5, 3)
        self.path = StochasticDepth()
        self.gate = nn.Linear(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.first(x), self.second(x), self.gate(x)]
        return self.path(self.drop(torch.cat(parts, dim=-1)))


@dataclass(frozen=True)
class Task:
    """What is to be computed; not how."""

    optimizer: str = "momentum"
    micro: tuple[int, ...] = (1, 1, 1, 1, 1)
    """Micro-batches of each step."""
    divisor: int = 1
    """What each micro-batch's loss is divided by."""
    clip: float | None = None
    exact: bool = False
    """Whether the gradients are exact in half precision; the weights are float32 then."""
    oracle: bool = False
    """For the reference: float64, and all micro-batches of a step as one."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.exact and not self.oracle else torch.float64

    def share(self, step: int) -> float:
        """What the mean loss of one backward pass is multiplied by."""
        return (self.micro[step] if self.oracle else 1) / self.divisor

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return (Sum() if self.exact else Net()).to(self.dtype)

    def steps(self) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
        generator = torch.Generator().manual_seed(3)

        def draw(*shape: int) -> torch.Tensor:
            if self.exact:
                drawn = torch.randint(-1, 2, shape, generator=generator)
            else:
                drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return drawn.to(self.dtype)

        width = 11 if self.exact else 3
        steps = [
            [(draw(BATCH, 5), draw(BATCH, width)) for _ in range(count)] for count in self.micro
        ]
        if not self.oracle:
            return steps
        merged = [[torch.cat(column) for column in zip(*micro, strict=True)] for micro in steps]
        return [[(x, y)] for x, y in merged]

    def criterion(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.exact:
            return (output * target).sum() / len(target)
        return mse_loss(output, target)

    def optimizer_of(self, parameters: Any, **options: Any) -> torch.optim.Optimizer:
        make: dict[str, Callable[[], torch.optim.Optimizer]] = {
            "plain": lambda: torch.optim.SGD(parameters, lr=0.1, **options),
            "momentum": lambda: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, **options),
            "adam": lambda: torch.optim.Adam(parameters, lr=0.02, **options),
        }
        return make[self.optimizer]()


@dataclass
class Outcome:
    """The weights after the last step, by name, and the metrics after each step."""

    weights: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, float]] = field(default_factory=list)

    def plain(self) -> Outcome:
        """Return it without tensors, to be sent between processes."""
        return Outcome({k: v.tolist() for k, v in self.weights.items()}, self.metrics)


@dataclass(frozen=True)
class Regime:
    """One column of the matrix."""

    name: str
    task: Task
    run: Callable[[Task, Any, int, int], Outcome]
    """Called with the task, the plugin, rank and number of ranks."""
    ranks: int = 1


REGIMES: dict[str, Regime] = {}


def regime(name: str, task: Task | None = None, ranks: int = 1) -> Callable[[Any], Any]:
    def register(run: Callable[..., Outcome]) -> Callable[..., Outcome]:
        REGIMES[name] = Regime(name, task or Task(), run, ranks)
        return run

    return register


@functools.cache
def plugin_of(spec: str) -> regplug.Plugin:
    """Return the plugin, to be copied; finding entry points again for each cell takes long."""
    return catalog.load(spec)


def run(rank: int, name: str, spec: str) -> Outcome | str:
    """Run a regime; on each rank, if it has several. A refusal is returned as its text."""
    chosen = REGIMES[name]
    try:
        plugin = copy.deepcopy(plugin_of(spec))
        return chosen.run(chosen.task, plugin, rank, chosen.ranks).plain()
    except regplug.errors.UnsupportedError as error:
        return str(error)


# --- the loop, with all that regimes vary ------------------------------------------------------


def whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def outcome(model: nn.Module, metrics: list[dict[str, float]]) -> Outcome:
    # Parameters that FSDP2 left gathered are not the optimizer's.
    for module in model.modules():
        if hasattr(module, "reshard") and hasattr(module, "unshard"):
            module.reshard()
    named = regplug.selection.where.named_parameters(model)
    return Outcome({n.name.removeprefix("module."): whole(n.parameter) for n in named}, metrics)


def loop(
    task: Task,
    spec: Any,
    *,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    rank: int = 0,
    ranks: int = 1,
    sync: Callable[[nn.Module, bool], Any] = lambda model, last: contextlib.nullcontext(),
    autocast: bool = False,
    **options: Any,
) -> Outcome:
    """The loop of everybody: attach after wrapping, backward per micro-batch, clip, step."""
    model = wrap(task.model())
    optimizer = task.optimizer_of(model.parameters(), **options)
    metrics = []
    with regplug.attach(model, optimizer, [spec]) as session:
        for step, micro in enumerate(task.steps()):
            optimizer.zero_grad()
            for number, (x, y) in enumerate(micro):
                with sync(model, number == len(micro) - 1):
                    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                        loss = task.criterion(model(x[rank::ranks]), y[rank::ranks])
                    (session.loss(loss) * task.share(step)).backward()
            if task.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), task.clip)
            optimizer.step()
            metrics.append(session.metrics())
        assert session.steps == len(task.micro)
        return outcome(session.model, metrics)


# --- one process -------------------------------------------------------------------------------


@regime("plain loop")
def plain(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec)


@regime("accumulation", Task(micro=(4, 4, 4, 4, 3), divisor=4))
def accumulation(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec)


@regime("clipping", Task(clip=0.05))
def clipping(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec)


@regime("Adam", Task("adam"))
def adam(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec)


@regime("fused Adam", Task("adam"))
def fused_adam(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, fused=True)


@regime("bf16 autocast", Task(exact=True))
def autocast(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, autocast=True)


@regime("compiled model")
def compiled(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, wrap=lambda model: torch.compile(model, backend="eager"))


@regime("closure")
def closure(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    model = task.model()
    optimizer = task.optimizer_of(model.parameters())
    metrics = []
    with regplug.attach(model, optimizer, [spec]) as session:
        for ((x, y),) in task.steps():

            def again(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
                optimizer.zero_grad()
                loss = session.loss(task.criterion(model(x), y))
                loss.backward()
                return loss

            optimizer.step(again)
            metrics.append(session.metrics())
        return outcome(model, metrics)


@regime("weights by hand", Task("plain"))
def by_hand(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    model = task.model()
    metrics = []
    with regplug.attach(model, plugins=[spec]) as session:
        for ((x, y),) in task.steps():
            session.loss(task.criterion(model(x), y)).backward()
            with session.step(lr=0.1), torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(0.1 * parameter.grad)
            model.zero_grad()
            metrics.append(session.metrics())
        return outcome(model, metrics)


def scaled(task: Task, spec: Any, **options: Any) -> Outcome:
    """Under a GradScaler, with steps in between that overflow and must leave no trace."""
    model = task.model()
    optimizer = task.optimizer_of(model.parameters(), **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    metrics = []
    with regplug.attach(model, optimizer, [spec]) as session:
        for number, ((x, y),) in enumerate(task.steps()):
            for spoilt in (False, True) if number in (0, 3) else (False,):
                optimizer.zero_grad()
                loss = session.loss(task.criterion(model(x), y))
                scaler.scale(loss * float("inf") if spoilt else loss).backward()
                scaler.step(optimizer)
                scaler.update()
            metrics.append(session.metrics())
        assert session.steps == len(task.micro)
        return outcome(model, metrics)


@regime("GradScaler")
def grad_scaler(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return scaled(task, spec)


@regime("GradScaler, fused", Task("adam"))
def grad_scaler_fused(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return scaled(task, spec, fused=True)


@regime("resumed", Task("adam"))
def resumed(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    """After two steps everything is made anew from a file."""
    steps, metrics, saved = task.steps(), [], None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.pt"
        for part in (steps[:2], steps[2:]):
            model = task.model()
            optimizer = task.optimizer_of(model.parameters())
            with regplug.attach(model, optimizer, [copy.deepcopy(spec)]) as session:
                if saved is not None:
                    state = torch.load(file, weights_only=True)
                    model.load_state_dict(state["model"])
                    optimizer.load_state_dict(state["optimizer"])
                    session.load_state_dict(state["session"])
                for ((x, y),) in part:
                    optimizer.zero_grad()
                    session.loss(task.criterion(model(x), y)).backward()
                    optimizer.step()
                    metrics.append(session.metrics())
                saved = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "session": session.state_dict(),
                }
                torch.save(saved, file)
        return outcome(model, metrics)


# --- two ranks ---------------------------------------------------------------------------------


def ddp_sync(model: nn.Module, last: bool) -> Any:
    return contextlib.nullcontext() if last else model.no_sync()


@regime("DDP", ranks=2)
def ddp(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, wrap=nn.parallel.DistributedDataParallel, rank=rank, ranks=ranks)


@regime("DDP, no_sync", Task(micro=(4, 4, 4, 4, 3), divisor=4), ranks=2)
def ddp_no_sync(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(
        task,
        spec,
        wrap=nn.parallel.DistributedDataParallel,
        rank=rank,
        ranks=ranks,
        sync=ddp_sync,
    )


@regime("DDP, static graph", Task("adam", clip=0.05), ranks=2)
def ddp_static(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(
        task,
        spec,
        wrap=lambda model: nn.parallel.DistributedDataParallel(model, static_graph=True),
        rank=rank,
        ranks=ranks,
    )


_meshes: dict[tuple[int, ...], Any] = {}


def mesh_of(*shape: int) -> Any:
    """Return a mesh of that shape; made once, as its process groups stay."""
    if shape not in _meshes:
        names = ("replicate", "shard")[-len(shape) :]
        _meshes[shape] = dist.init_device_mesh("cpu", shape, mesh_dim_names=names)
    return _meshes[shape]


def sharder(*shape: int, **options: Any) -> Callable[[nn.Module], nn.Module]:
    from torch.distributed.fsdp import fully_shard

    def shard(model: nn.Module) -> nn.Module:
        mesh = mesh_of(*(shape or (2,)))
        fully_shard(model.first, mesh=mesh, **options)
        fully_shard(model, mesh=mesh, **options)
        return model

    return shard


@contextlib.contextmanager
def fsdp_sync(model: Any, last: bool) -> Iterator[None]:
    model.set_requires_gradient_sync(last)
    yield


@regime("FSDP2", ranks=2)
def fsdp2(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, wrap=sharder(), rank=rank, ranks=ranks)


@regime("FSDP2, Adam, clipping", Task("adam", clip=0.05), ranks=2)
def fsdp2_adam(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, wrap=sharder(), rank=rank, ranks=ranks)


@regime("FSDP2, accumulation", Task(micro=(4, 4, 4, 4, 3), divisor=4), ranks=2)
def fsdp2_accumulation(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, wrap=sharder(), rank=rank, ranks=ranks, sync=fsdp_sync)


@regime("FSDP2, bf16 policy", Task(exact=True), ranks=2)
def fsdp2_mixed(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return loop(task, spec, wrap=sharder(mp_policy=policy), rank=rank, ranks=ranks)


@regime("HSDP, replicated", ranks=2)
def hsdp(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return loop(task, spec, wrap=sharder(2, 1), rank=rank, ranks=ranks)


# --- Accelerate --------------------------------------------------------------------------------


def accelerated(task: Task, spec: Any, rank: int, ranks: int, *, fsdp: bool = False) -> Outcome:
    """Accelerate's own loop: it counts micro-batches, divides, clips and skips."""
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=task.divisor)
    if fsdp:
        shard_with(accelerator)
    model = task.model()
    optimizer = task.optimizer_of(model.parameters())
    micro = [batch for step in task.steps() for batch in step]
    xs = torch.cat([x for x, _ in micro])
    ys = torch.cat([y for _, y in micro])
    loader = DataLoader(
        torch.utils.data.TensorDataset(xs, ys), batch_size=BATCH // accelerator.num_processes
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    metrics = []
    with regplug.attach(model, optimizer, [spec], accelerator=accelerator) as session:
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(session.loss(task.criterion(model(x), y)))
                if task.clip is not None and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), task.clip)
                optimizer.step()
                optimizer.zero_grad()
                if accelerator.sync_gradients:
                    metrics.append(session.metrics())
        assert session.steps == len(task.micro)
        return outcome(session.model, metrics)


def shard_with(accelerator: Any) -> None:
    """Have Accelerate use FSDP2 on CPU, which its own check does not allow."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    # From where each new AcceleratorState takes it anew.
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


RAGGED = Task(micro=(4, 4, 4, 4, 3), divisor=4, clip=0.05)


@regime("Accelerate, one process", RAGGED)
def accelerate_one(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    from accelerate.state import AcceleratorState, GradientState

    try:
        return accelerated(task, spec, rank, ranks)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@regime("Accelerate, DDP", RAGGED, ranks=2)
def accelerate_ddp(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return accelerated(task, spec, rank, ranks)


@regime("Accelerate, FSDP2", RAGGED, ranks=2)
def accelerate_fsdp2(task: Task, spec: Any, rank: int, ranks: int) -> Outcome:
    return accelerated(task, spec, rank, ranks, fsdp=True)
