"""What a loop returned: its outputs, its module and its weights."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from regplug.errors import RegplugError, SpecError
from regplug.selection.where import Selection
from regplug.tune.data import as_numpy, length

__all__ = [
    "Predict",
    "as_input",
    "coefficients",
    "module_of",
    "nonzero_weights",
    "output",
]

Predict: TypeAlias = Callable[[Any], Any]
Array: TypeAlias = NDArray[Any]


def output(predict: Predict, X: Any, *, plain: bool = True) -> Any:
    """Return what ``predict`` says of ``X``, without gradients, as an array of one row for each.

    Not ``plain``, it is returned as it is, be it a tensor.

    A module is put into evaluation mode and gets a tensor, of its own floating type and on its own
    device; any other callable gets ``X`` as the loop got it.

    Raises:
        SpecError: what came back has no row for each row of ``X``.
    """
    with torch.no_grad():
        if isinstance(predict, nn.Module):
            predict.eval()
            X = as_input(predict, X)
        found = predict(X)
    if not plain:
        return found
    array = as_numpy(found)
    if array.ndim == 0 or len(array) != length(X):
        raise SpecError(
            f"the predictor returned {_shown(found)} for {length(X)} rows: "
            "it must return one for each"
        )
    return array


def as_input(module: nn.Module, X: Any) -> torch.Tensor:
    """Return ``X`` as a tensor on the module's device, floating numbers in the module's type."""
    # torch warns of arrays that can't be written, and joblib's shared ones can't.
    tensor = X if isinstance(X, torch.Tensor) else torch.tensor(as_numpy(X), device="cpu")
    first = next(module.parameters(), None)
    if first is None:
        return tensor
    floating = tensor.is_floating_point() and first.is_floating_point()
    # The type first: not every device has float64.
    return tensor.to(first.dtype if floating else tensor.dtype).to(first.device)


def _shown(found: object) -> str:
    shape = getattr(found, "shape", None)
    return type(found).__name__ if shape is None else f"an output of shape {tuple(shape)}"


def module_of(predict: object) -> nn.Module | None:
    """Return the module that a predictor is, or is about: ``model.forward``, a closure over one."""
    return next(_modules(predict), None)


def _modules(predict: object) -> Iterator[nn.Module]:
    if isinstance(predict, nn.Module):
        yield predict
    elif isinstance(predict, functools.partial):
        for part in (predict.func, *predict.args, *predict.keywords.values()):
            yield from _modules(part)
    elif isinstance(owner := getattr(predict, "__self__", None), nn.Module):
        yield owner
    else:
        for cell in getattr(predict, "__closure__", None) or ():
            try:
                if isinstance(cell.cell_contents, nn.Module):
                    yield cell.cell_contents
            except ValueError:  # a cell that was never filled
                continue


def nonzero_weights(predict: object) -> int | None:
    """Return how many weights are not exactly 0, biases and normalization left out."""
    model = module_of(predict)
    if model is None:
        return None
    try:
        chosen = Selection("weights").of(model)
    except RegplugError:
        return None
    return int(sum(int(torch.count_nonzero(named.parameter.detach())) for named in chosen))


def coefficients(predict: object, most: int = 10_000) -> Array | None:
    """Return the coefficients of a linear model, shape ``(features,)`` or ``(outputs, features)``.

    A linear model is a module with one weight of two dimensions and no other than its bias.
    """
    model = module_of(predict)
    if model is None:
        return None
    tensors = [p.detach() for p in model.parameters()]
    weights = [p for p in tensors if p.ndim == 2]
    if len(weights) != 1 or weights[0].numel() > most or any(p.ndim > 2 for p in tensors):
        return None
    if len(tensors) > 2 or any(p.ndim < 2 and p.numel() > len(weights[0]) for p in tensors):
        return None
    weight = as_numpy(weights[0]).astype(np.float64)
    return weight[0] if len(weight) == 1 else weight
