"""Which optimizer really updates the weights, where one holds others and passes its step on.

SAM and Lookahead hold one that they let step, containers one for each part of a model, Accelerate's
wrapper any. Step hooks fire where ``step`` is called, and learning rates are those of whoever
updates: both may be another optimizer than the one that the loop knows.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from regplug.backend.deepspeeds import is_deepspeeds
from regplug.backend.optimizer_names import is_hooked
from regplug.backend.shards import local
from regplug.errors import SpecError, UnsupportedError

__all__ = ["Doubt", "held", "ids", "parameters", "parts", "share_of", "unwrap", "wrappers"]

# Where wrappers keep the optimizer inside, the commonest first.
_NAMES = (
    "optimizer",
    "base_optimizer",
    "inner_optimizer",
    "_optimizer",
    "_base_optimizer",
    "optim",
    "_optim",
)


def unwrap(optimizer: object) -> Optimizer:
    """Return the torch optimizer whose step hooks fire at its updates, from inside any wrapper.

    Accelerate's wrapper has no hooks of its own, one that calls an inner optimizer's ``step``
    without initialising itself (timm's Lookahead) accepts hooks that never fire, and the hooks of
    one that is called by other methods (SAM's ``first_step`` and ``second_step``) don't either.

    Raises:
        UnsupportedError: DeepSpeed's wrapper, one with no usable optimizer inside, or one with
            several of which it can't be known which are to be attached to.
        SpecError: ``optimizer`` is no torch optimizer at all.
    """
    *_, last = wrappers(optimizer)
    if not isinstance(last, Optimizer) or not is_hooked(last):
        raise _nothing_inside(optimizer, last)
    return last


def wrappers(optimizer: object) -> list[object]:
    """Return ``optimizer`` and what it wraps, the innermost last.

    Raises:
        UnsupportedError: DeepSpeed's wrapper, or one that holds two optimizers of all its weights.
    """
    found = [optimizer]
    for _ in range(8):
        outer = found[-1]
        _refuse_deepspeed(outer)
        hooked = isinstance(outer, Optimizer) and is_hooked(outer)
        inner = _passes_on_to(outer) if hooked else _named(outer)  # type: ignore[arg-type]
        if inner is None:
            break
        found.append(inner)
    return found


def parts(optimizer: Optimizer) -> list[Optimizer]:
    """Return the optimizers that update a part each of what ``optimizer`` has, none if it does.

    The groups of a container are copies that nobody reads (torchtitan's, which is an optimizer for
    its hooks alone): learning rates and the like are those of the parts.
    """
    whole = ids(optimizer)
    inner = [other for _, other in held(optimizer) if ids(other) <= whole]
    if _is_zero(optimizer) or sum(len(ids(other)) for other in inner) != len(whole):
        return []
    return inner if set().union(*map(ids, inner)) == whole else []


def _refuse_deepspeed(outer: object) -> None:
    # Of an engine's own optimizers (FusedAdam) the hooks fire as of any.
    if is_deepspeeds(outer) and not (isinstance(outer, Optimizer) and is_hooked(outer)):
        raise UnsupportedError(
            f"{type(outer).__name__}: DeepSpeed's ZeRO keeps gradients out of .grad, where a "
            "penalty could be added; use DDP or FSDP2"
        )


def share_of(optimizer: Optimizer | None) -> Optimizer | None:
    """Return what a ``ZeroRedundancyOptimizer`` updates this rank's share of weights by."""
    inner = getattr(optimizer, "optim", None)
    if optimizer is None or not isinstance(inner, Optimizer) or not _is_zero(optimizer):
        return None
    return inner


def _is_zero(optimizer: Optimizer) -> bool:
    # Its inner optimizer has this rank's share of the update, its own step hands around the result.
    return any(base.__name__ == "ZeroRedundancyOptimizer" for base in type(optimizer).__mro__)


def _passes_on_to(outer: Optimizer) -> Optimizer | None:
    """Return the optimizer that ``outer`` holds for all of its weights, if there is one."""
    whole = ids(outer)
    found = {id(inner): (name, inner) for name, inner in held(outer) if whole <= ids(inner)}
    if not found or _is_zero(outer):
        return None
    if len(found) > 1:
        names = " and ".join(f"{name} ({type(inner).__name__})" for name, inner in found.values())
        raise UnsupportedError(
            f"{type(outer).__name__} holds several optimizers of the same weights, {names}, and "
            "which of them updates can't be known: attach to each that does, "
            "regplug.attach(model, optimizer.…, plugins, name='…')"
        )
    ((_, inner),) = found.values()
    return inner


def _named(outer: object) -> Optimizer | None:
    """Return what a wrapper without hooks of its own keeps under one of the usual names."""
    for name in _NAMES:
        if isinstance(candidate := getattr(outer, name, None), Optimizer):
            return candidate
    if isinstance(outer, Optimizer) or not callable(getattr(outer, "step", None)):
        return None
    found = list(held(outer))
    return found[0][1] if len(found) == 1 else None


def parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    """Return the tensors that ``optimizer`` updates, in its order."""
    return [p for group in getattr(optimizer, "param_groups", ()) for p in group["params"]]


def ids(optimizer: Optimizer) -> set[int]:
    """Return what tells the tensors that ``optimizer`` updates from others."""
    return {id(p) for p in parameters(optimizer)}


def held(outer: object) -> Iterator[tuple[str, Optimizer]]:
    """Yield the optimizers in the attributes of ``outer``, and in lists and dicts there."""
    for name, value in list(getattr(outer, "__dict__", {}).items()):
        for part in _members(value):
            if isinstance(part, Optimizer) and part is not outer:
                yield name, part


def _members(value: object) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if type(value) in (list, tuple) else (value,)  # type: ignore[return-value]


def _nothing_inside(optimizer: object, outer: object) -> Exception:
    each = _each(optimizer)
    if each is None and outer is not optimizer:
        each = _each(outer)
    name = type(optimizer).__name__
    if each is not None:
        line = (
            'sessions = [regplug.attach(model, part, plugins, name=f"part{i}") '
            f"for i, part in enumerate({each})]"
        )
        way = f"attach to each of them, `{line}`"
        if isinstance(optimizer, Optimizer):
            return UnsupportedError(f"{name} is several optimizers: {way}")
        return SpecError(
            f"optimizer must be one torch.optim.Optimizer or None, got {name} of several: {way}"
        )
    if isinstance(optimizer, Optimizer):
        return UnsupportedError(
            f"{name} never calls torch.optim.Optimizer's step hooks, so no "
            "plugin could act: attach to the optimizer that it wraps"
        )
    return SpecError(f"optimizer must be a torch.optim.Optimizer or None, got {name}")


def _each(optimizer: object) -> str | None:
    """Return an expression for the optimizers in a list, a dict or an attribute of such a kind."""
    if _several(optimizer):
        return "optimizer" + _values(optimizer)
    for name, value in list(getattr(optimizer, "__dict__", {}).items()):
        if _several(value):
            return f"optimizer.{name}{_values(value)}"
    return None


def _several(value: object) -> bool:
    members = value.values() if isinstance(value, Mapping) else value
    return (
        isinstance(members, Iterable)
        and (type(members) in (list, tuple) or isinstance(value, Mapping))
        and any(isinstance(part, Optimizer) for part in members)
    )


def _values(value: object) -> str:
    return ".values()" if isinstance(value, Mapping) else ""


class Doubt:
    """Looks whether a wrapper does pass its step on, until it has once.

    That it holds an optimizer of all its weights is a good sign and no proof.

    Args:
        optimizer: the wrapper as it is attached to.
        inner: the optimizer that it is taken to pass its step on to.
    """

    def __init__(self, optimizer: object, inner: Optimizer) -> None:
        self._inner = inner
        self._before: tuple[torch.Tensor, torch.Tensor] | None = None
        self._alone = 0
        self._handles: list[Any] = []
        for outer in wrappers(optimizer):
            if outer is not inner and isinstance(outer, Optimizer) and is_hooked(outer):
                self._handles += [
                    outer.register_step_pre_hook(self._begins),
                    outer.register_step_post_hook(self._ends),
                ]

    def settle(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _begins(self, outer: Optimizer, args: Any, kwargs: Any) -> None:
        params = parameters(outer)
        taking = [p for p in params if p.grad is not None]
        smallest = local(min(taking or params, key=torch.Tensor.numel)).detach()
        self._before = smallest, smallest.clone()

    def _ends(self, outer: Optimizer, args: Any, kwargs: Any) -> None:
        before, self._before = self._before, None
        if before is None or not self._handles or torch.equal(*before):
            return
        self._alone += 1
        if self._alone > 1:  # the first may have been a detour, as SAM's
            name = next((n for n, inner in held(outer) if inner is self._inner), "inner")
            raise UnsupportedError(
                f"{type(outer).__name__} holds {name} ({type(self._inner).__name__}) for all of "
                "its weights, which is attached to for that, and updates them by itself: attach "
                "without it, attach(model, plugins=…), and write `with session.step(lr=…): "
                "optimizer.step()`"
            )
