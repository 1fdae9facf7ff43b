"""Which parameters: ``where=`` turned into a set of named parameters of one model.

>>> import torch
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
>>> [named.name for named in Selection("weights").of(model)]
['0.weight', '2.weight']
>>> [named.name for named in Selection(["all", "!*.bias"]).of(model)]
['0.weight', '1.weight', '2.weight']
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias, overload

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from regplug.errors import SelectionError, UnsupportedError

__all__ = ["Named", "Selection", "Where", "clean_name", "named_parameters", "nearest"]

Predicate: TypeAlias = Callable[[str, nn.Parameter, nn.Module], bool]
Where: TypeAlias = str | Predicate | Sequence[str | Predicate]

# What wrappers put into qualified names; none of it is the user's.
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_PARAMETRIZED = re.compile(r"(?:^|(?<=\.))parametrizations\.([^.]+)\.original\d*$")
_NORMALIZATION = (
    _NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []),
)
# Models bring their own: LlamaRMSNorm, T5LayerNorm, BatchNormAct2d.
_NORMALIZATION_NAME = re.compile(r"(?i)(batch|layer|group|instance|rms|scale)_?norm|norm(\d?d)?$")


@dataclass(frozen=True, eq=False)
class Named:
    """One parameter of a model, with every name that it goes by."""

    parameter: nn.Parameter
    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]

    @property
    def name(self) -> str:
        """The first name, without what wrappers put into it."""
        return self.names[0]


def clean_name(name: str) -> str:
    """Return a qualified name without the parts that compiling and wrapping put into it."""
    return _WRAPPERS.sub("", name)


def named_parameters(model: nn.Module) -> list[Named]:
    """Return each parameter of ``model`` once, with all its names: tied weights have several.

    The original of a parametrized weight goes by its plain name too: ``conv.weight`` beside
    ``conv.parametrizations.weight.original1``.
    """
    found: dict[int, tuple[nn.Parameter, list[str], list[nn.Module]]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        for local, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = clean_name(f"{path}.{local}" if path else local)
            _, names, owners = found.setdefault(id(parameter), (parameter, [], []))
            plain = _PARAMETRIZED.sub(r"\1", name)
            if plain != name:
                names.append(plain)
                owners.append(modules[path[: path.rindex("parametrizations.")].rstrip(".")])
            names.append(name)
            owners.append(module)
    return [Named(p, tuple(names), tuple(owners)) for p, names, owners in found.values()]


def _is_weight(named: Named) -> bool:
    """Two or more dimensions, floating, and no normalization layer: judged by type and shape."""
    parameter = named.parameter
    return (
        parameter.is_floating_point()
        and parameter.ndim >= 2
        and not any(_is_normalization(module) for module in named.modules)
    )


def _is_normalization(module: nn.Module) -> bool:
    return isinstance(module, _NORMALIZATION) or bool(
        _NORMALIZATION_NAME.search(type(module).__name__)
    )


def nearest(wanted: str, names: Iterable[str], most: int = 3) -> list[str]:
    """Return up to ``most`` of ``names`` that look like ``wanted``, or simply the first ones."""
    names = list(dict.fromkeys(names))
    return difflib.get_close_matches(wanted, names, n=most, cutoff=0.4) or names[:most]


class Selection:
    """``where=``, checked when it is made and applied to a model as often as is wanted.

    Args:
        where: ``"weights"`` (trainable, floating, two or more dimensions, not in a normalization
            layer), ``"all"`` (trainable), a glob pattern on qualified names (``"encoder.*"``),
            ``"!pattern"`` to exclude, a list of these (an exclusion always wins; a list of
            exclusions alone starts from ``"weights"``), or a callable
            ``(name, parameter, module) -> bool``.

    Raises:
        SelectionError: ``where`` is none of these.
    """

    def __init__(self, where: Where = "weights") -> None:
        parts: list[str | Predicate] = (
            list(where) if isinstance(where, list | tuple) else [where]  # type: ignore[list-item]
        )
        if not parts:
            raise SelectionError(f"where must not be empty, got {where!r}")
        for part in parts:
            if not (callable(part) or (isinstance(part, str) and part.lstrip("!").strip())):
                raise SelectionError(
                    "where must be 'weights', 'all', a glob pattern, '!pattern', a list of these "
                    f"or a callable (name, parameter, module) -> bool, got {where!r}"
                )
        self.where = where
        self._exclude = [p[1:] for p in parts if isinstance(p, str) and p.startswith("!")]
        self._include = [p for p in parts if not (isinstance(p, str) and p.startswith("!"))]
        if not self._include:
            self._include = ["weights"]

    def __repr__(self) -> str:
        return f"Selection({self.where!r})"

    def of(self, model: nn.Module) -> list[Named]:
        """Return the parameters of ``model`` that are selected; frozen ones are kept.

        They are left out at each step instead, so that a layer may thaw in the course of training.

        Raises:
            SelectionError: nothing trainable is selected, or a pattern matches no name at all;
                the message shows the nearest names.
            UnsupportedError: a complex parameter is asked for by ``"all"``, by name or callable.
        """
        known = named_parameters(model)
        for pattern in self._include:
            if isinstance(pattern, str) and not any(_matches(pattern, named) for named in known):
                raise SelectionError(self._no_match(pattern, known))
        chosen = [named for named in known if self._takes(named)]
        for named in chosen:
            if named.parameter.is_complex():
                raise UnsupportedError(
                    f"{named.name} is {named.parameter.dtype}, and penalties are defined here for "
                    f"real weights only: exclude it with where=[…, '!{named.name}']"
                )
        chosen = [named for named in chosen if named.parameter.is_floating_point()]
        if not any(named.parameter.requires_grad for named in chosen):
            frozen = f"; {len(chosen)} frozen ones match" if chosen else ""
            raise SelectionError(
                f"where={self.where!r} selects no trainable parameter{frozen}; "
                f"the model has {_listed(n.name for n in known if n.parameter.requires_grad)}"
            )
        return chosen

    def _takes(self, named: Named) -> bool:
        if any(_matches(pattern, named) for pattern in self._exclude):
            return False
        for part in self._include:
            if isinstance(part, str):
                if _matches(part, named):
                    return True
            elif any(
                part(n, named.parameter, m) for n, m in zip(named.names, named.modules, strict=True)
            ):
                return True
        return False

    def _no_match(self, pattern: str, known: list[Named]) -> str:
        names = [name for named in known for name in named.names]
        if not names:
            return f"where={self.where!r} matches nothing: the model has no parameters"
        if pattern == "weights":
            return (
                "where='weights' matches nothing: no parameter has two or more dimensions outside "
                f"normalization layers; the model has {_listed(names)}"
            )
        close = ", ".join(nearest(pattern, names))
        return (
            f"where={self.where!r}: {pattern!r} matches no parameter; the nearest names are {close}"
        )


def _matches(pattern: str, named: Named) -> bool:
    if pattern == "all":
        return True
    if pattern == "weights":
        return _is_weight(named)
    try:
        return any(fnmatchcase(name, pattern) for name in named.names)
    except re.error as error:
        raise SelectionError(f"{pattern!r} is no glob pattern: {error}") from error


def _listed(names: Iterable[str], most: int = 6) -> str:
    shown = list(names)
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return (", ".join(shown[:most]) or "none") + more


@dataclass(frozen=True, eq=False)
class Covered:
    """One selected parameter of one optimizer."""

    name: str
    parameter: nn.Parameter
    group_index: int
    module: nn.Module


class Coverage(Sequence[Covered]):
    """The selection within one optimizer's parameters, in the optimizer's order."""

    def __init__(self, entries: Iterable[Covered]) -> None:
        self.entries = tuple(entries)
        self.by_group: dict[int, list[nn.Parameter]] = {}
        for entry in self.entries:
            self.by_group.setdefault(entry.group_index, []).append(entry.parameter)

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Covered: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Covered, ...]: ...
    def __getitem__(self, index: int | slice) -> Covered | tuple[Covered, ...]:
        return self.entries[index]

    def __iter__(self) -> Iterator[Covered]:
        return iter(self.entries)

    @property
    def trainable(self) -> list[Covered]:
        """The entries that are not frozen now."""
        return [entry for entry in self.entries if entry.parameter.requires_grad]

    @property
    def weights(self) -> int:
        """How many trainable weights there are, over all shards."""
        return sum(entry.parameter.numel() for entry in self.trainable)


def shared(model: nn.Module, groups: Sequence[dict[str, list[torch.Tensor]]]) -> list[str]:
    """Return the names of the model's parameters that an optimizer's ``groups`` hold.

    Raises:
        SelectionError: there are none.
    """
    own = {id(parameter) for group in groups for parameter in group["params"]}
    names = [named.name for named in named_parameters(model) if id(named.parameter) in own]
    if not names:
        raise SelectionError(
            "this optimizer has no parameter of this model: it was made from another model, or "
            "from this one before its parameters were replaced; make it after the model is in its "
            "final form, or attach again"
        )
    return names


def cover(
    selection: Selection, model: nn.Module, groups: Sequence[dict[str, list[torch.Tensor]]]
) -> Coverage:
    """Return what ``selection`` covers of the parameters in an optimizer's ``groups``.

    Raises:
        SelectionError: the selection matches nothing, or nothing that this optimizer updates.
    """
    chosen = {id(named.parameter): named for named in selection.of(model)}
    entries = [
        Covered(named.name, named.parameter, index, named.modules[0])
        for index, group in enumerate(groups)
        for parameter in group["params"]
        if (named := chosen.get(id(parameter))) is not None
    ]
    if not any(entry.parameter.requires_grad for entry in entries):
        updated = shared(model, groups)
        raise SelectionError(
            f"where={selection.where!r} selects {_listed(n.name for n in chosen.values())}, none "
            f"of which this optimizer updates: it has {_listed(updated)}"
        )
    return Coverage(entries)
