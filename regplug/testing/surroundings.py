"""What stands around every loop of a process: settings, and what torch and others are made of."""

import builtins
import copy
import logging
import math
import pickle
import random
import sys
import time
import types
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import regplug
from regplug.testing.knobs import SETTLED_LATER, readings, set_back

__all__ = ["Surroundings", "difference_of"]

_ABSENT = "(absent)"
# What classes get by themselves.
_BY_ITSELF = ("__abstractmethods__", "__annotations__", "__doc__", "__slotnames__")
_TORCH = str(Path(torch.__file__).parent)


def _modules() -> Iterator[types.ModuleType]:
    yield from (builtins, copy, logging, math, pickle, random, time, warnings, regplug)
    yield from (torch, torch.amp, torch.autograd, torch.linalg, torch.nn, torch.nn.functional)
    yield from (torch.nn.init, torch.nn.utils, torch.optim, torch.optim.lr_scheduler, torch.special)
    yield from (torch.utils.checkpoint, torch.serialization, torch.backends)
    for name in ("numpy", "numpy.random", "torch.distributed"):
        if name in sys.modules:
            yield sys.modules[name]


def _classes(*others: type) -> Iterator[type]:
    found: dict[type, None] = dict.fromkeys((torch.Tensor, nn.Parameter, nn.Module))
    for room in (torch.nn, torch.optim, torch.optim.lr_scheduler, torch.amp, regplug):
        found.update(dict.fromkeys(v for v in vars(room).values() if isinstance(v, type)))
    for cls in others:
        found.update(dict.fromkeys(cls.__mro__[:-1]))
    return iter(found)


def _hook_lists() -> Iterator[tuple[str, dict[Any, Any]]]:
    """Yield the lists of hooks that hold for all modules and for all optimizers."""
    # torch.optim deletes the name of its module, which is asked of its class.
    for module in (torch.nn.modules.module, sys.modules[torch.optim.Optimizer.__module__]):
        for name, value in vars(module).items():
            if name.endswith("_hooks") and isinstance(value, dict):
                yield f"{module.__name__}.{name.lstrip('_')}", value


class Surroundings:
    """A picture of all that a plugin could change outside its own loop.

    Args:
        model: a model whose modules' classes are looked at too.
        optimizer: an optimizer whose class is.
    """

    def __init__(self, model: nn.Module | None = None, optimizer: object = None) -> None:
        own = [type(module) for module in model.modules()] if model is not None else []
        self.settings = readings()
        self.modules = {module: dict(vars(module)) for module in _modules()}
        self.classes = {cls: dict(vars(cls)) for cls in _classes(*own, type(optimizer))}
        self.hooks = {name: (hooks, dict(hooks)) for name, hooks in _hook_lists()}
        self.loaded = dict(sys.modules)

    def changed(self, *, long_ago: bool = False) -> str | None:
        """Return in words what is not as it was, None if everything is.

        Args:
            long_ago: whether so much has happened since that torch and the exam have left traces
                of their own, which are left out then.
        """
        return next(self._changes(SETTLED_LATER if long_ago else ()), None)

    def _changes(self, left_out: Collection[str]) -> Iterator[str]:
        now = readings()
        for name in now:
            if name in self.settings and now[name] != self.settings[name] and name not in left_out:
                yield difference_of(name, now[name], self.settings[name])
        for name, (hooks, before) in self.hooks.items():
            if hooks != before:
                more = [hook for key, hook in hooks.items() if key not in before]
                what = f"has {_named(more[0])} in it" if more else "has lost a hook"
                yield f"{name}, which holds for all of this process, {what}"
        for owner, attributes in self._owners():
            path = f"{owner.__module__}.{owner.__name__}" if isinstance(owner, type) else ""
            for name, (found, value) in self._edited(owner, attributes):
                was = "was not there" if value is _ABSENT else f"was {_named(value)}"
                yield f"{path or owner.__name__}.{name} is {_named(found)}, {was}"
        for name, module in self.loaded.items():
            if sys.modules.get(name) is not module:
                yield f"sys.modules[{name!r}] is another module"

    def _owners(self) -> list[tuple[Any, dict[str, Any]]]:
        return [*self.modules.items(), *self.classes.items()]

    def _edited(self, owner: Any, before: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        now = vars(owner)
        for name, value in before.items():
            found = now.get(name, _ABSENT)
            if found is not value and not _is_its_own(owner, name, found, value):
                yield name, (found, value)
        for name in now.keys() - before.keys():
            if owner is regplug or name in _BY_ITSELF or isinstance(now[name], types.ModuleType):
                continue  # what is looked up late stays
            if not _is_its_own(owner, name, now[name], _ABSENT):
                yield name, (now[name], _ABSENT)

    def put_back(self) -> None:
        """Undo what was changed, as far as it can be."""
        set_back(self.settings)
        for hooks, before in self.hooks.values():
            for key in hooks.keys() - before.keys():
                del hooks[key]
        for owner, attributes in self._owners():
            for name, (_, value) in list(self._edited(owner, attributes)):
                if value is _ABSENT:
                    delattr(owner, name)
                else:
                    setattr(owner, name, value)
        sys.modules.update(self.loaded)


def _is_its_own(owner: Any, name: str, now: object, before: object) -> bool:
    """Whether a change is torch's own: what it remembers, and what its compiler replaces."""
    if name.startswith("___"):
        return True
    code = getattr(getattr(now, "__func__", now), "__code__", None)
    if code is not None and code.co_filename.startswith(_TORCH):
        same = getattr(now, "__qualname__", 0) == getattr(before, "__qualname__", 0)
        return same or before is _ABSENT or "dynamo" in code.co_filename
    if callable(now) or callable(before) or isinstance(now, property | staticmethod | classmethod):
        return False
    # Private names and collections of modules are their memory.
    remembers = name.startswith("_") or isinstance(now, list | dict | set)
    return now == before or (isinstance(owner, types.ModuleType) and remembers)


def _named(value: object) -> str:
    if value is _ABSENT:
        return "gone"
    name = getattr(value, "__qualname__", None)
    room = getattr(value, "__module__", None)
    return f"{room}.{name}" if name else repr(value)[:80]


def difference_of(name: str, now: Any, before: Any) -> str:
    """Return in words what a setting is now and was before; of a collection only the difference.

    >>> difference_of("the seed", 1, 2)
    'the seed: 1 instead of 2'
    >>> difference_of("the variables", {"A": "1", "B": "2"}, {"A": "1"})
    "the variables: {'B': '2'} instead of {}"
    """
    if isinstance(now, dict) and isinstance(before, dict):
        keys = [key for key in {**now, **before} if now.get(key) != before.get(key)]
        now = {key: now[key] for key in keys if key in now}
        before = {key: before[key] for key in keys if key in before}
    elif isinstance(now, list) and isinstance(before, list):
        now, before = [x for x in now if x not in before], [x for x in before if x not in now]
    return f"{name}: {str(now)[:80]} instead of {str(before)[:80]}"
