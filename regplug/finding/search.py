"""What a running program has made: its living optimizers and modules, and how it calls them.

torch tells of every optimizer's step and of every module's forward, but of no optimizer when it is
made. So they are looked for among all living objects, where it is worth tens of milliseconds.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from regplug.backend import optimizer_names, private_modules, shards, stack, wrapped, wrappers
from regplug.backend.living import living
from regplug.backend.names import own_parameters

__all__ = [
    "Bare",
    "holds_any",
    "model_of",
    "names_of",
    "optimizers",
    "passes_on",
]

_INTERNAL = {"torch", "regplug", "accelerate", "pluggy", "contextlib", "runpy"}


def optimizers() -> list[Optimizer]:
    """Return every living torch optimizer whose step updates parameters by itself.

    One that passes the update on to another optimizer of the same parameters (SAM, Lookahead) is
    left out, and so is one that works for another on a part of its parameters (ZeRO's): the step
    of each would count twice.
    """
    found = [
        candidate
        for candidate in living(lambda kind: issubclass(kind, Optimizer))
        if _is_whole(candidate)
    ]
    hidden = {id(outer) for outer in found if passes_on(outer)}
    for outer in found:
        if id(outer) not in hidden:
            hidden.update(id(inner) for _, inner in wrapped.held(outer))
    return [optimizer for optimizer in found if id(optimizer) not in hidden]


def passes_on(optimizer: Optimizer) -> bool:
    """Tell whether other optimizers, which ``optimizer`` holds, update all of its parameters."""
    whole = wrapped.ids(optimizer)
    inner = [wrapped.ids(other) for _, other in wrapped.held(optimizer) if _is_whole(other)]
    return set().union(*(part for part in inner if part <= whole)) == whole


def _is_whole(optimizer: Optimizer) -> bool:
    # A wrapper may skip Optimizer.__init__, and then has neither groups nor hooks of its own.
    return "param_groups" in vars(optimizer) and optimizer_names.is_hooked(optimizer, step=False)


class Bare(nn.ModuleDict):
    """What stands for a model where no single module holds all that an optimizer updates.

    Its children are the modules that do together, and tensors of no module at all are its
    parameters ``param_0``, ``param_1``, …, by their place in the optimizer.
    """


def model_of(optimizer: Optimizer, called: Sequence[nn.Module] = ()) -> nn.Module:
    """Return the module that ``optimizer`` trains.

    Args:
        optimizer: any torch optimizer.
        called: modules whose forward was called from outside of any other, the best guess first.

    Returns:
        The called module, if it holds all that the optimizer updates. Else the smallest living
        module around a called one that does; without a called one, the outermost whose parameters
        are just these, or the outermost that has them among others. Else a :class:`Bare`.
    """
    params = {id(p): p for p in wrapped.parameters(optimizer)}
    called = [module for module in called if params.keys() & _held(module, params)]
    for module in called:
        if params.keys() <= _held(module, params):
            return module
    parents = _Parents()
    around = [
        module
        for module in parents.above(parents.owners(params))
        if params.keys() <= _held(module, params)
    ]
    if around:
        if called:
            size = {id(module): len(_held(module, params)) for module in around}
            wanted = _held(called[0], params)
            around = [module for module in around if wanted <= _held(module, params)] or around
            least = min(size[id(module)] for module in around)
            return _outermost([m for m in around if size[id(m)] == least], parents)
        trained = [
            module
            for module in around
            if {id(p) for p in module.parameters() if p.requires_grad} <= params.keys()
        ]
        return _outermost(trained or around, parents)
    return _together(optimizer, called, parents)


def _held(module: nn.Module, params: dict[int, torch.Tensor]) -> set[int]:
    held = {id(p) for p in module.parameters()}
    if any(shards.is_dtensor(p) and id(p) not in held for p in params.values()):
        # FSDP2 may have left the root's parameters gathered; they are not the optimizer's then.
        wrappers.reshard(module)
        held = {id(p) for p in module.parameters()}
    return held


def holds_any(module: nn.Module, optimizer: Optimizer) -> bool:
    """Tell whether ``module`` has a parameter that ``optimizer`` updates."""
    params = {id(p): p for p in wrapped.parameters(optimizer)}
    return bool(params.keys() & _held(module, params))


class _Parents:
    """Who holds whom, among all living modules."""

    def __init__(self) -> None:
        self.modules = [
            candidate
            for candidate in living(lambda kind: issubclass(kind, nn.Module))
            if not isinstance(candidate, Bare) and private_modules.is_made(candidate)
        ]
        self._of: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
        for module in self.modules:
            for name, child in private_modules.children(module):
                self._of[id(child)].append((module, name))

    def of(self, module: nn.Module) -> list[nn.Module]:
        return [parent for parent, _ in self._of[id(module)]]

    def name(self, module: nn.Module) -> list[str]:
        return [name for _, name in self._of[id(module)] if not name.isdigit()]

    def owners(self, params: dict[int, torch.Tensor]) -> list[nn.Module]:
        """Return the modules that hold one of these parameters themselves."""
        return [
            module
            for module in self.modules
            if any(id(p) in params for _, p in own_parameters(module))
        ]

    def above(self, modules: Iterable[nn.Module]) -> list[nn.Module]:
        """Return these modules and all that hold them, each once."""
        found: dict[int, nn.Module] = {}
        waiting = list(modules)
        while waiting:
            module = waiting.pop()
            if id(module) not in found:
                found[id(module)] = module
                waiting += self.of(module)
        return list(found.values())


def _outermost(modules: Sequence[nn.Module], parents: _Parents) -> nn.Module:
    known = {id(module) for module in modules}
    for module in modules:
        if not any(id(m) in known for m in parents.above(parents.of(module)) if m is not module):
            return module
    return modules[0]


def _together(optimizer: Optimizer, called: Sequence[nn.Module], parents: _Parents) -> nn.Module:
    """Return a :class:`Bare` of the modules that hold a part each, and of what no module holds."""
    left = {id(p): p for p in wrapped.parameters(optimizer)}
    parts: list[nn.Module] = []
    for module in called:
        if left.keys() & _held(module, left):
            parts.append(module)
            left = {key: p for key, p in left.items() if key not in _held(module, left)}
    while left:
        owners = parents.owners(left)
        if not owners:
            break
        # In the optimizer's order, so that it is the same on all ranks.
        first = next(key for key in left if any(key in _held(m, left) for m in owners))
        above = parents.above(m for m in owners if first in {id(p) for _, p in own_parameters(m)})
        part = max(above, key=lambda module: len(left.keys() & _held(module, left)))
        same = [m for m in above if left.keys() & _held(m, left) == left.keys() & _held(part, left)]
        parts.append(_outermost(same, parents))
        left = {key: p for key, p in left.items() if key not in _held(parts[-1], left)}
    whole = Bare()
    for module in parts:
        names = [*names_of(module), *parents.name(module), type(module).__name__.lower()]
        name = next((n for n in names if not hasattr(whole, n)), f"{names[-1]}_{len(whole)}")
        whole[name] = module
    for place, tensor in enumerate(wrapped.parameters(optimizer)):
        if id(tensor) in left:
            private_modules.put_parameter(whole, f"param_{place}", tensor)
    return whole


def names_of(thing: Any) -> list[str]:
    """Return the names that the program has for ``thing``: variables and attributes of ``self``.

    The global ones of ``__main__`` come first, then those of the frames on the stack, inner before
    outer. What a wrapper (DDP, a compiled model) holds goes by the wrapper's names too.
    """
    wanted = _layers(thing)
    found: dict[str, None] = {}
    for scope in _scopes():
        for name, value in list(scope.items()):
            if name.startswith("_") or name == "self" or not name.isidentifier():
                continue
            if not wanted.isdisjoint(_layers(value)):
                found[name] = None
    return list(found)


def _layers(thing: Any) -> set[int]:
    kind = type(thing)
    if issubclass(kind, nn.Module) and private_modules.is_made(thing):
        return {id(layer) for layer in wrappers.layers(thing)}
    if issubclass(kind, Optimizer):
        return {id(thing), id(vars(thing).get("optimizer", thing))}
    return set()


def _scopes() -> Iterator[dict[str, Any]]:
    yield vars(sys.modules["__main__"])
    for scope in stack.scopes(_INTERNAL):
        yield scope
        owner = scope.get("self")
        if owner is not None and not isinstance(owner, nn.Module) and hasattr(owner, "__dict__"):
            yield vars(owner)
