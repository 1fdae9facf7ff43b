"""DeepSpeed: an engine that steps by itself, over weights of which each rank trains a part.

``engine.save_checkpoint(folder, tag)`` writes the sessions' states too, as ``save_state`` of
Accelerate does: ``folder/tag/regplug/<session>.rank<k>.pt``; ``engine.load_checkpoint`` reads them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from regplug.backend import deepspeeds
from regplug.backend.step_events import StepListener
from regplug.session.accelerate import is_sharded, read, write
from regplug.view import SessionView

if TYPE_CHECKING:
    from regplug.backend.zero import ZeroSteps

__all__ = ["Engine", "EngineEvents", "connect", "find", "is_engines"]


@dataclass(frozen=True, eq=False)
class Engine:
    """What was found of an engine.

    Attributes:
        engine: the engine, if it was given rather than the module in it.
        module: the user's module.
        optimizer: the torch optimizer inside.
        steps: the steps of its ZeRO; None for stage 0, whose steps are the optimizer's own.
    """

    engine: Any
    module: nn.Module
    optimizer: Optimizer
    steps: "ZeroSteps | None"


def is_engines(model: object, optimizer: object) -> bool:
    """Whether one of the two is DeepSpeed's, told without importing it."""
    return deepspeeds.is_deepspeeds(model) or deepspeeds.is_deepspeeds(optimizer)


def find(model: nn.Module, optimizer: object) -> Engine | None:
    """Return the engine that ``model`` is or ``optimizer`` is of; None if neither is.

    Raises:
        UnsupportedError: it is of a kind, or has a setting, that regplug can't be right with.
    """
    if not is_engines(model, optimizer):
        return None
    zero = deepspeeds.zero_of(model, optimizer)
    engine = model if deepspeeds.is_engine(model) else None
    module = cast(nn.Module, model.module) if engine is not None else model
    if engine is not None and isinstance(zero, Optimizer):
        deepspeeds.check_inner(zero)
        return Engine(engine, module, zero, None)
    from regplug.backend.zero import steps_of

    steps = steps_of(zero)
    return Engine(engine, module, steps.inner, steps)


class EngineEvents:
    """The events of an engine's real steps: as :class:`StepEvents`, which are an optimizer's."""

    def __init__(self, steps: "ZeroSteps", listener: StepListener) -> None:
        self._steps, self._listener = steps, listener
        steps.connect(listener)

    def disconnect(self) -> None:
        """Tell of no more steps. May be called twice."""
        self._steps.disconnect(self._listener)


def connect(session: SessionView, engine: Any) -> Callable[[], None] | None:
    """Make the checkpoints of ``engine`` hold the state of ``session``.

    Returns:
        A function that undoes it; None without an engine, whose checkpoints are not known then.
    """
    if engine is None:
        return None
    save, load = engine.save_checkpoint, engine.load_checkpoint
    attached = True

    @wraps(save)
    def saving(save_dir: Any, tag: Any = None, *args: Any, **kwargs: Any) -> Any:
        # As the engine itself does; it counts on only later.
        tag = f"global_step{engine.global_steps}" if tag is None else tag
        rank = dist.get_rank()
        if attached and (is_sharded(session) or rank == 0):
            # First, since the engine's own ends once all ranks have written.
            write(str(Path(save_dir) / str(tag)), session, rank, dist.get_world_size())
        return save(save_dir, tag, *args, **kwargs)

    @wraps(load)
    def loading(*args: Any, **kwargs: Any) -> Any:
        found = load(*args, **kwargs)
        if attached and found[0] is not None:
            folder = str(Path(found[0]).parent)
            read(folder, session, dist.get_rank(), dist.get_world_size(), engine.device)
        return found

    before = {name: vars(engine).get(name) for name in ("save_checkpoint", "load_checkpoint")}
    ours = {"save_checkpoint": saving, "load_checkpoint": loading}
    for name, method in ours.items():
        setattr(engine, name, method)

    def disconnect() -> None:
        nonlocal attached
        attached = False
        for name, method in ours.items():
            if vars(engine).get(name) is not method:
                continue  # another session has put its own around this, which passes on
            if before[name] is None:
                delattr(engine, name)
            else:
                setattr(engine, name, before[name])

    return disconnect
