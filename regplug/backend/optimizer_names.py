"""The private names of torch's optimizers and their GradScaler; see :mod:`.private`."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as optim_module

from regplug.backend.private import missing

__all__ = [
    "check_grad_scaler",
    "hook_tables",
    "is_hooked",
    "no_global_hooks",
    "unhooked_step",
    "updated_in_backward",
]

# Where the names are; a test that renames one sees what is done without it.
_STEP_HOOKS, _HOOKED = "_optimizer_step_pre_hooks", "hooked"
_GLOBAL = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
_IN_BACKWARD = "_in_backward_optimizers"
_AMP_MARK, _OVERFLOW, _SCALE = "_step_supports_amp_scaling", "found_inf", "grad_scale"


def _sample() -> Optimizer:
    return torch.optim.SGD([torch.zeros(1, device="cpu")], lr=0.1)


@lru_cache
def _torch_marks(table: str, mark: str) -> tuple[bool, bool]:
    """Whether optimizers of this torch have such a table of hooks, and their steps such a mark."""
    sample = _sample()
    return table in vars(sample), hasattr(type(sample).step, mark)


def _nothing(*arguments: Any) -> None:
    """A hook that does nothing."""


def is_hooked(optimizer: Optimizer, *, step: bool = True) -> bool:
    """Whether ``optimizer`` has step hooks, which a class that skips its base's __init__ has not.

    Without the private table: by registering one. Without the mark on a wrapped ``step``: by what
    ``functools.wraps`` leaves there; and where torch wraps nothing any more it is taken for
    granted, and a session whose optimizer never tells of a step says that it saw none.

    Args:
        optimizer: any.
        step: whether its ``step`` is to call them, too.
    """
    has_table, has_mark = _torch_marks(_STEP_HOOKS, _HOOKED)
    if has_table:
        if not hasattr(optimizer, _STEP_HOOKS):
            return False
    else:
        try:
            optimizer.register_step_pre_hook(_nothing).remove()
        except AttributeError:
            return False
    if not step:
        return True
    mark = _HOOKED if has_mark else "__wrapped__"
    taken = not has_mark and not hasattr(type(_sample()).step, mark)
    return taken or bool(getattr(type(optimizer).step, mark, False))


def updated_in_backward(parameter: torch.Tensor, optimizer: Optimizer) -> bool:
    """Whether another optimizer updates ``parameter`` inside the backward pass.

    That is torch's ``_apply_optimizer_in_backward``, itself private, which leaves its mark on the
    parameter. Without it: no, and a session whose steps find no gradient says that it saw none.
    """
    others = getattr(parameter, _IN_BACKWARD, ())
    return bool(others) and not any(other is optimizer for other in others)


def check_grad_scaler(optimizer: Optimizer) -> None:
    """Check, once, that a GradScaler tells fused optimizers of an overflow before their hooks.

    They skip the step inside their kernel, so nothing else tells of it.

    Raises:
        UnsupportedError: it does not, and ``optimizer`` is such a one.
    """
    fused = any(group.get("fused") for group in optimizer.param_groups)
    if not (fused or getattr(optimizer, _AMP_MARK, False)):
        return
    for name, is_set in zip((_OVERFLOW, _SCALE), _set_by_scaler(_OVERFLOW, _SCALE), strict=True):
        if not is_set:
            raise missing(
                f"Optimizer.{name} under a GradScaler",
                "the steps that a fused optimizer skips and what its gradients are scaled by",
                "make the optimizer with fused=False",
            )


@lru_cache
def _set_by_scaler(*names: str) -> list[bool]:
    """Return whether a GradScaler leaves each of these at a fused optimizer that overflowed."""
    weight = torch.zeros(1, device="cpu")
    weight.grad = torch.full_like(weight, torch.inf)
    sample: Any = torch.optim.SGD([weight], lr=0.1, fused=True)
    is_set = [True] * len(names)

    def step(*args: Any, **kwargs: Any) -> None:
        is_set[:] = [getattr(sample, name, None) is not None for name in names]

    sample.step = step  # of this instance alone, so that nobody's hooks see it
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros((), device="cpu"))
    scaler.step(sample)  # which calls no step at all where it skips it by itself
    del sample.step
    return is_set


def unhooked_step(kind: type[Optimizer]) -> Callable[..., Any]:
    """Return the ``step`` of these optimizers that calls no hook, neither theirs nor global ones.

    Without torch's mark: by what ``functools.wraps`` leaves at what torch wraps each step in.
    """
    step: Any = kind.step
    _, has_mark = _torch_marks(_STEP_HOOKS, _HOOKED)
    if getattr(step, _HOOKED if has_mark else "__wrapped__", False):
        return getattr(step, "__wrapped__", step)  # type: ignore[no-any-return]
    return step  # type: ignore[no-any-return]


@contextmanager
def no_global_hooks() -> Iterator[None]:
    """Have no step call global hooks within, as one that calls ``super().step()`` would.

    They are put out of sight and not removed, for torch may be going through them right now.
    Without the tables: nothing is done, and the hooks see steps on copies.
    """
    kept = {name: getattr(optim_module, name) for name in _GLOBAL if hasattr(optim_module, name)}
    for name in kept:
        setattr(optim_module, name, OrderedDict())
    try:
        yield
    finally:
        for name, table in kept.items():
            setattr(optim_module, name, table)


def hook_tables(optimizer: Optimizer) -> set[str]:
    """Return the names of the attributes in which hooks of this very optimizer are kept."""
    return {name for name in vars(optimizer) if name.endswith("_hooks")}
