"""The parameters of a model by all their names, and what they are judged by.

>>> import torch
>>> [named.name for named in named_parameters(torch.nn.Linear(2, 1))]
['weight', 'bias']
"""

import re
from dataclasses import dataclass

from torch import nn

from regplug.backend import private
from regplug.backend.fragments import standing_for

__all__ = ["Named", "clean_name", "is_normalization", "named_parameters", "own_parameters"]

# What wrappers put into qualified names; none of it is the user's.
_WRAPPERS = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(private.PREFIXES)})\.")
_PARAMETRIZED = re.compile(r"(?:^|(?<=\.))parametrizations\.([^.]+)\.original\d*$")
_NORMALIZATION = (
    *private.normalizations(),
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []),
)
# Models bring their own: LlamaRMSNorm, T5LayerNorm, BatchNormAct2d.
_NORMALIZATION_NAME = re.compile(r"(?i)(batch|layer|group|instance|rms|scale)_?norm|norm(\d?d)?$")
# torch's modules that say nothing of what a subclass does with parameters of its own.
_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity)


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


def own_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return what ``module`` holds itself, under each of its names.

    A class may have a ``named_parameters`` of its own, which says less than this.
    """
    return list(nn.Module.named_parameters(module, recurse=False, remove_duplicate=False))


def named_parameters(model: nn.Module) -> list[Named]:
    """Return each parameter of ``model`` once, with all its names: tied weights have several.

    Where an engine trains another tensor in the place of a parameter, it is that one.

    The original of a parametrized weight goes by its plain name too: ``conv.weight`` beside
    ``conv.parametrizations.weight.original1``.
    """
    found: dict[int, tuple[nn.Parameter, list[str], list[nn.Module]]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        for local, parameter in own_parameters(module):
            name = clean_name(f"{path}.{local}" if path else local)
            _, names, owners = found.setdefault(id(parameter), (parameter, [], []))
            plain = _PARAMETRIZED.sub(r"\1", name)
            if plain != name:
                names.append(plain)
                owners.append(modules[path[: path.rindex("parametrizations.")].rstrip(".")])
            names.append(name)
            owners.append(module)
    return [
        Named(standing_for(p), tuple(names), tuple(owners)) for p, names, owners in found.values()
    ]


def is_normalization(module: nn.Module) -> bool:
    """Whether ``module`` is a normalization layer, by what it is; by its name if that is unknown.

    >>> class LinearNorm(nn.Linear):
    ...     "A linear layer with an initialization of its own."
    >>> is_normalization(LinearNorm(2, 2))
    False
    >>> is_normalization(nn.LayerNorm(2))
    True
    """
    if isinstance(module, _NORMALIZATION):
        return True
    for cls in type(module).__mro__:
        own = cls.__module__.startswith("torch.") and issubclass(cls, nn.Module)
        if own and cls not in _CONTAINERS:
            return False  # a layer of torch's, of another kind
    if not _NORMALIZATION_NAME.search(type(module).__name__):
        return False
    return not _maps(module)


def _maps(module: nn.Module) -> bool:
    """Whether a module says that it leads so many inputs to so many outputs, as linear ones do."""
    return any(
        all(isinstance(getattr(module, f"{end}_{what}", None), int) for end in ("in", "out"))
        for what in ("features", "channels")
    )
