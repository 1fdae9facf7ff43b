"""What models and optimizers are called: in a summary, and where an order's pattern is compared."""

from torch import nn
from torch.optim import Optimizer

from regplug.backend import wrappers
from regplug.backend.names import own_parameters
from regplug.finding import search

__all__ = ["class_names", "names_of_optimizer", "title"]


def title(model: nn.Module, optimizer: Optimizer | None) -> str:
    """Return what model is trained by what optimizer."""
    kind = _kind(model)
    if isinstance(model, search.Bare):
        parts = [*map(_kind, model.children()), *(name for name, _ in own_parameters(model))]
        kind = " and ".join(parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")
    return f"{kind} with {type(optimizer).__name__}"


def _kind(model: nn.Module) -> str:
    """Return the name of the user's own class, not of the one that FSDP2 makes of it."""
    bases = type(model).__mro__
    made = [base for base in bases if any(b.__name__ == "FSDPModule" for b in base.__mro__)]
    return next(base for base in bases if base not in made).__name__


def class_names(model: nn.Module) -> list[str]:
    """Return the class names of ``model`` and of what it wraps, the user's own first."""
    if isinstance(model, search.Bare):
        return ["+".join(model.keys()) or "parameters", *map(_kind, model.children())]
    return [_kind(layer) for layer in reversed(list(wrappers.layers(model)))]


def names_of_optimizer(optimizer: Optimizer) -> list[str]:
    """Return the names that the program has for ``optimizer``, and its class's."""
    return [*search.names_of(optimizer), type(optimizer).__name__]
