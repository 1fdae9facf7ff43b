"""What a model computes with, where that is not what it trains: pruned and parametrized weights.

torch keeps the original of such a weight as the parameter, ``weight_orig`` or
``parametrizations.weight.original``, and makes the weight of it at each forward. Regularizers act
on originals, which are what the optimizer updates; whoever looks at a model means the weight.

>>> import torch, regplug
>>> from torch.nn.utils import prune
>>> layer = prune.random_unstructured(torch.nn.Linear(4, 2), "weight", amount=0.5)
>>> regplug.attach(layer, plugins=["l1(0.1)"]).metrics()["l1/zeros"]
0.5
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from regplug.backend import shards
from regplug.backend.fragments import Fragment
from regplug.backend.names import own_parameters
from regplug.selection.coverage import Coverage, Covered

__all__ = ["in_use", "notes"]

# So many names can be taken in at a glance.
_FEW = 4


class _Use(NamedTuple):
    """A weight that is made of originals, and how."""

    module: nn.Module
    name: str
    how: str
    make: Callable[[], torch.Tensor]


def in_use(coverage: Coverage) -> Coverage:
    """Return ``coverage`` with the weights in use in place of their originals, each once.

    They are made anew, detached, with no effect on the model, and whole: sharded originals of
    parametrized weights are gathered, a collective each. Parameters that are used themselves stay,
    and so do parametrized originals that an engine trains apart from the model, whose modules it
    gathers by hooks of its own.
    """
    uses = {id(entry): use for entry in coverage if (use := _use(entry)) is not None}
    if not uses:
        return coverage
    entries: list[Covered] = []
    visited: set[tuple[int, str]] = set()
    for entry in coverage:
        use = uses.get(id(entry))
        if use is None or _is_apart(entry, use):
            entries.append(entry)
        elif (key := (id(use.module), use.name)) not in visited:
            visited.add(key)
            with torch.no_grad():
                made: Any = use.make().detach()
            made.requires_grad_(entry.parameter.requires_grad)
            entries.append(replace(entry, name=_sibling(entry, use.name), parameter=made))
    return Coverage(entries, coverage.lazy, coverage.where)


def _is_apart(entry: Covered, use: _Use) -> bool:
    return use.how == "parametrized" and isinstance(entry.parameter, Fragment)


def _sibling(entry: Covered, name: str) -> str:
    return entry.name.rpartition(".")[0] + "." * ("." in entry.name) + name


def _use(entry: Covered) -> _Use | None:
    module, parameter = entry.module, entry.parameter
    local = entry.name.rpartition(".")[2]
    if parametrize.is_parametrized(module, local) and local not in dict(own_parameters(module)):
        return _Use(module, local, "parametrized", partial(_parametrized, module, local))
    base = local.removesuffix("_orig")
    mask = None if base == local else getattr(module, f"{base}_mask", None)
    if isinstance(mask, torch.Tensor):
        return _Use(module, base, "pruned", partial(_masked, parameter, mask))
    for hook in _hooks(module):
        if isinstance(hook, WeightNorm) and local in (f"{hook.name}_g", f"{hook.name}_v"):
            return _Use(module, hook.name, "normalized", partial(hook.compute_weight, module))
        if isinstance(hook, SpectralNorm) and local == f"{hook.name}_orig":
            made = partial(hook.compute_weight, module, do_power_iteration=False)
            return _Use(module, hook.name, "normalized", made)
    return None


def _hooks(module: nn.Module) -> Iterator[object]:
    """Yield what the tables of ``module`` hold: its hooks of every kind among that."""
    for table in vars(module).values():
        # Not those of its parameters and children, which may be thousands.
        if isinstance(table, dict) and not isinstance(
            next(iter(table.values()), None), torch.Tensor | nn.Module
        ):
            yield from table.values()


def _masked(original: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    masked = shards.local(original) * shards.part(mask, original)
    return shards.like(masked, original)


def _parametrized(module: nn.Module, name: str) -> torch.Tensor:
    originals: Any = module.parametrizations[name]  # type: ignore[index]
    trained = dict(originals.named_parameters())
    made: torch.Tensor
    with _evaluating(originals):
        if any(map(shards.is_spread, trained.values())):
            whole = {key: shards.full(p) for key, p in trained.items()}
            made = torch.func.functional_call(originals, whole, ())
        else:
            made = getattr(module, name)
    return made


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Have ``module`` in evaluation mode: a look must not move a power iteration on."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, training in modes:
            part.training = training


def notes(coverage: Coverage) -> list[str]:
    """Return what ``describe()`` says of a coverage: names if they are few, and what is special."""
    found = []
    names = list(dict.fromkeys(entry.name for entry in coverage.trainable))
    if 0 < len(names) <= _FEW:
        found.append(f"covers {', '.join(names)}")
    if coverage.lazy:
        found.append(_of_lazy([entry.name for entry in coverage.lazy]))
    uses = [(entry, use) for entry in coverage.trainable if (use := _use(entry)) is not None]
    if uses:
        apart = any(_is_apart(entry, use) for entry, use in uses)
        how = " and ".join(dict.fromkeys(use.how for _, use in uses))
        shown = _shown(list(dict.fromkeys(entry.name for entry, _ in uses)))
        found.append(
            f"acts on the originals of {how} weights ({shown}), which are what is trained; "
            + ("metrics are of these" if apart else "metrics are of the weights in use")
        )
    return found + _of_union(coverage.where)


def _of_lazy(names: list[str]) -> str:
    return (
        f"{len(names)} lazy parameter{' has' if len(names) == 1 else 's have'} no shape yet "
        f"({_shown(names)}): covered, if selected, from the first forward on"
    )


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_FEW]) + ", …" * (len(names) > _FEW)


def _of_union(where: object) -> list[str]:
    """Tell of a list such as ``["weights", "head.*"]``, which reads like a narrowing."""
    parts = [p for p in where if isinstance(p, str)] if isinstance(where, list | tuple) else []
    wide = [p for p in parts if p in ("weights", "all")]
    others = [p for p in parts if p not in wide and not p.startswith("!") and "&" not in p]
    if not (wide and others):
        return []
    both = f"{wide[0]} & {others[0]}" if wide[0] == "weights" else others[0]
    return [f"where={where!r} is a union; what is in both is {both!r}"]
