"""Checks on two ranks: DDP, FSDP2, and whether all ranks hold and report the same.

Each rank trains on half of every batch, so that the mean of both is the plain loop's.
"""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from regplug.testing.bench import Bench, Rig, Setup, Snapshot, difference
from regplug.testing.checks.refusing import refusals
from regplug.testing.processes import RANKS, ProcessesError, processes
from regplug.testing.registry import Case, check
from regplug.testing.subject import Failure, Skip, Subject, same

__all__: list[str] = []

STEPS, BATCH = 3, 8


def _ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def _fsdp2(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    return model


WRAPPERS = {"ddp": _ddp, "fsdp2": _fsdp2}


class _Half(Bench):
    """The samples of each batch that are this rank's."""

    def data(self, step: int, n: int = BATCH) -> torch.Tensor:
        share = n // RANKS
        rank = dist.get_rank()
        return super().data(step, n)[rank * share : (rank + 1) * share]


def train(rank: int, bench: Bench, setup: Setup | None, wrapper: str) -> dict[str, Any]:
    """Train on this rank and return what it holds and reports at the end. Runs in a worker."""
    half = _Half(bench.model, bench.batch, bench.loss)
    try:
        with refusals():
            rig = _Sharded(half, setup, wrap=WRAPPERS[wrapper])
    except Skip as skip:
        return {"refused": str(skip)}
    try:
        snapshot = rig.run(STEPS)
        session = rig.session
        return {
            "weights": snapshot.weights,
            "numbers": snapshot.numbers,
            "steps": session.steps if session else STEPS,
            "metrics": session.metrics() if session else {},
        }
    finally:
        rig.detach()
        if not dist.is_initialized():
            raise SystemExit("after detach() the process group, which is the user's, is gone")


class _Sharded(Rig):
    """A rig whose optimizer gets the parameters that the wrapper has put in place.

    Each rank has random numbers of its own, as dropout wants: what draws for a weight that all
    ranks hold must not draw from them.
    """

    def __init__(self, bench: Bench, setup: Setup | None, *, wrap: Any) -> None:
        super().__init__(bench, setup, wrap=wrap, edit=_own_stream)
        torch.manual_seed(700 + dist.get_rank())


def _own_stream(model: nn.Module) -> None:
    """Seed by the rank, once the weights are there."""
    torch.manual_seed(500 + dist.get_rank())


def _job(subject: Subject, setup: Setup | None, wrapper: str) -> list[dict[str, Any]]:
    """Return the answers of both ranks, asked once; an error is remembered too."""
    key = (wrapper, setup.delivery if setup else "without")
    if setup is not None and (subject.bench, wrapper) in _impossibles:
        raise Skip(_impossibles[subject.bench, wrapper])
    if key not in subject.workers_results:
        try:
            subject.workers_results[key] = processes().run(train, subject.bench, setup, wrapper)
        except Exception as error:
            subject.workers_results[key] = error
    found = subject.workers_results[key]
    if isinstance(found, Exception):
        if setup is not None and not _possible(subject.bench, wrapper):
            raise Skip(_impossibles[subject.bench, wrapper]) from found
        raise found
    refused = [answer.get("refused") for answer in found]
    if refused[0] != refused[1]:
        # What another rank refuses is told to this one in other words.
        raise Failure(f"it refuses to run on one of the ranks alone: {refused[0] or refused[1]}")
    if refused[0] is not None:
        raise Skip(refused[0])
    return found  # type: ignore[no-any-return]


# Why a model does not train on ranks without any plugin. Each try there ends both processes.
_impossibles: dict[tuple[Bench, str], str] = {}


def _possible(bench: Bench, wrapper: str) -> bool:
    """Tell whether the model trains on ranks without any plugin."""
    try:
        processes().run(train, bench, None, wrapper)
    except ProcessesError as error:
        # Not a rank that died or hung: that may be otherwise the next time.
        if error.raised:
            _impossibles[bench, wrapper] = (
                f"without the plugin {wrapper} fails too, with torch {torch.__version__}: {error}"
            )
            return False
    return True


def _snapshot(answer: dict[str, Any]) -> Snapshot:
    return Snapshot(answer["weights"], answer["numbers"])


def _like_plain(subject: Subject, setup: Setup, wrapper: str) -> None:
    answer = _job(subject, setup, wrapper)[0]
    if answer["steps"] != STEPS:
        raise Failure(f"{STEPS} steps were counted as {answer['steps']}")
    expected = subject.rig(setup).run(STEPS)
    if not subject.plugin.stochastic:
        ended = _snapshot(answer)
        if subject.adds_to_loss and difference(ended, expected) is not None:
            # Of what is no mean over samples, as a variance, each rank has its own part's.
            expected = _by_parts(subject, setup)
        same(ended, expected, "it acts otherwise than in one process")
        return
    without, alone = subject.rig(None).run(STEPS), _job(subject, None, wrapper)[0]
    found, usual = _spread(_snapshot(answer), _snapshot(alone)), _spread(expected, without)
    if not usual / 2 <= found <= usual * 2:
        raise Failure(
            f"what it draws moves the weights by {found:.3g} (root mean square), and by "
            f"{usual:.3g} in one process"
        )


def _by_parts(subject: Subject, setup: Setup) -> Snapshot:
    """Return what comes of the mean of the losses of the samples of each rank, in one process."""
    rig = subject.rig(setup)
    for step in range(STEPS):
        rig.optimizer.zero_grad()
        for x in rig.data(step, BATCH).chunk(RANKS):
            (rig.loss(x) / RANKS).backward()
        rig.optimizer.step()
    return rig.snapshot()


def _spread(found: Snapshot, expected: Snapshot) -> float:
    gaps = torch.cat([(found.weights[n] - w).flatten() for n, w in expected.weights.items()])
    return float(gaps.square().mean().sqrt())


@check("collective", distributed=True)
def collective(subject: Subject) -> Iterable[Case]:
    """On two ranks it comes to an end: neither leaves, or waits for one that does not come."""
    found: list[str] = []

    def run(setup: Setup, wrapper: str) -> None:
        if found:
            raise Skip("not tried again, since each try takes half a minute")
        try:
            _job(subject, setup, wrapper)
        except ProcessesError as error:
            if error.ended:
                found.append(str(error))
                raise Failure(str(error)) from error

    for setup in subject.setups():
        for wrapper in WRAPPERS:
            yield f"{wrapper}, {setup.regime}", partial(run, setup, wrapper)


@check("ddp", distributed=True, after=("collective",))
def ddp(subject: Subject) -> Iterable[Case]:
    """On two ranks of ``DistributedDataParallel`` it does what it does in one process."""
    for setup in subject.setups():
        yield setup.regime, partial(_like_plain, subject, setup, "ddp")


@check("fsdp2", distributed=True, after=("collective", "separable", "restore", "ddp"))
def fsdp2(subject: Subject) -> Iterable[Case]:
    """On weights that ``fully_shard`` splits unevenly it does what it does in one process."""
    for setup in subject.setups():
        yield setup.regime, partial(_like_plain, subject, setup, "fsdp2")


@check("ranks", distributed=True, after=("ddp", "fsdp2", "metrics"))
def ranks(subject: Subject) -> Iterable[Case]:
    """Both ranks end with the same weights and report the same, which is what one would report."""

    def run(setup: Setup, wrapper: str) -> None:
        first, second = _job(subject, setup, wrapper)
        if (gap := difference(_snapshot(second), _snapshot(first), rtol=0, atol=0)) is not None:
            raise Failure(f"the ranks drift apart: {gap}")
        if first["metrics"].keys() != second["metrics"].keys():
            raise Failure(
                f"the ranks report different metrics: {sorted(first['metrics'])} and "
                f"{sorted(second['metrics'])}"
            )
        rig = subject.rig(setup)
        rig.run(STEPS)
        assert rig.session is not None
        plain = rig.session.metrics()
        for key, value in first["metrics"].items():
            if value != second["metrics"][key]:
                raise Failure(f"{key} is {value} on rank 0 and {second['metrics'][key]} on rank 1")
            alike = math.isclose(value, plain.get(key, math.nan), rel_tol=1e-4, abs_tol=1e-9)
            if not alike and not subject.plugin.stochastic:
                raise Failure(f"{key} is {value}, but {plain.get(key)} in one process")

    for setup in subject.setups():
        for wrapper in WRAPPERS:
            yield f"{wrapper}, {setup.regime}", partial(run, setup, wrapper)
