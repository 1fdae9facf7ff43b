"""Steps of an optimizer on trial: on copies of a few weights, with nothing of the user's touched.

A copy shares no tensor, list or dict with its original. Its step is called past all hooks, those of
the optimizer and torch's global ones, and random numbers are put back afterwards.
"""

import inspect
import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch.optim import Optimizer

from regplug.backend import optimizer_names, wrapped
from regplug.backend.groups import Group
from regplug.errors import UnsupportedError

__all__ = ["trial_steps", "untouched_randomness"]


def trial_steps(
    optimizer: Optimizer,
    group: Group,
    steps: Sequence[tuple[torch.Tensor, torch.Tensor]],
    *,
    lr_times: float = 1.0,
) -> torch.Tensor:
    """Return what the last of some steps of an optimizer like this one makes of a weight.

    Args:
        optimizer: any; it is left as it is.
        group: the group of it whose numbers hold. The state is that of before the first step.
        steps: for each step what the weight is before it, and the gradient. Both are left alone.
        lr_times: what the learning rate is multiplied by.

    Raises:
        UnsupportedError: it holds other optimizers, which a copy would share with it.
    """
    if any(True for _ in wrapped.held(optimizer)):
        raise UnsupportedError("it holds other optimizers, and their steps would be real ones")
    p = torch.nn.Parameter(steps[0][0].detach().clone())
    copy = _copied_optimizer(optimizer, group, [p])
    if lr_times != 1.0 and "lr" in copy.param_groups[0]:
        copy.param_groups[0]["lr"] = copy.param_groups[0]["lr"] * lr_times
    step = optimizer_names.unhooked_step(type(optimizer))
    closure = [lambda: torch.zeros((), dtype=p.dtype)] if _wants_closure(step) else []
    for weight, gradient in steps:
        p.data.copy_(weight)
        p.grad = gradient.detach().clone()
        with optimizer_names.no_global_hooks():
            step(copy, *closure)
    return p.detach()


def _wants_closure(step: Any) -> bool:
    try:
        parameters = list(inspect.signature(step).parameters.values())
    except (TypeError, ValueError):
        return False
    return any(p.name == "closure" and p.default is inspect.Parameter.empty for p in parameters)


def _copied_optimizer(
    optimizer: Optimizer, group: Group, params: list[torch.nn.Parameter]
) -> Optimizer:
    copy: Optimizer = object.__new__(type(optimizer))
    numbers = {key: _copied(value) for key, value in group.items() if key != "params"}
    mine = optimizer_names.hook_tables(optimizer)
    for name, value in vars(optimizer).items():
        if name in mine:
            vars(copy)[name] = OrderedDict()
        elif name not in ("param_groups", "state", "step", *_SCALING):
            bound = getattr(value, "__self__", None) is optimizer
            # A method that is kept as an attribute would work on the original.
            vars(copy)[name] = MethodType(value.__func__, copy) if bound else _copied(value)
    vars(copy)["param_groups"] = [{**numbers, "params": list(params)}]
    vars(copy)["state"] = defaultdict(dict)
    if "_numel_cache" in vars(copy):
        vars(copy)["_numel_cache"] = None
    for name in _CACHED_PARAMS:  # what some optimizers keep of their first group
        if isinstance(vars(copy).get(name), list):
            vars(copy)[name] = list(params)
    return copy


# What a GradScaler leaves at a fused optimizer for the step that is under way.
_SCALING = ("grad_scale", "found_inf")
_CACHED_PARAMS = ("_params", "params")


def _copied(value: Any) -> Any:
    """Return a copy of containers and tensors, and anything else itself."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if type(value) in (list, tuple, set, deque):
        return type(value)(_copied(part) for part in value)
    if isinstance(value, defaultdict):
        return defaultdict(value.default_factory, {k: _copied(v) for k, v in value.items()})
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _copied(part)) for key, part in value.items())
    return value


@contextmanager
def untouched_randomness(device: torch.device) -> Iterator[None]:
    """Have all random numbers afterwards be those that they would have been."""
    numpy = sys.modules.get("numpy")
    python, arrays = random.getstate(), None if numpy is None else numpy.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(arrays)
