"""Which values of a target a known loss can learn, and which are labels to be numbered for it."""

from typing import Any

import torch

from regplug.errors import SpecError
from regplug.tune.losses import Call, tensors

__all__ = ["codes_of", "name_of_loss"]


def codes_of(
    call: Call | None, target: torch.Tensor, output: Any, words: bool, name: str
) -> tuple[torch.Tensor | None, tuple[int, ...]]:
    """Return the values to replace and their codes, if the loss can't take them as they are.

    Raises:
        SpecError: there is no code for them.
    """
    if call is None or call.tells == "value" or not call.classes:
        return None, ()
    found = torch.unique(target)
    if call.values:
        low = -1 if call.signs else 0
        if call.signs:
            fits = bool((found.abs() == 1).all())
        else:
            fits = bool(((found >= 0) & (found <= 1)).all())
        if fits:
            return None, ()
        if call.name != "hinge_embedding_loss":  # which learns distances: there is no order
            if len(found) == 2 and bool((found == found.round()).all()):
                return found, (low, 1)
            if len(found) == 1 and bool((found == 0).all()):
                return found, (low,)
        wanted = "-1 and 1" if call.signs else "two classes, or values from 0 to 1"
        raise SpecError(f"{name} is for {wanted}, and y holds {_some(found, words)}")
    if call.columns == 1:
        raise SpecError(
            f"{name} over one output is 0 whatever the weights are: build a model with an output "
            "for each class, or take BCEWithLogitsLoss for two classes with one output"
        )
    if call.columns is None or _shares(target, output):
        return None, ()
    found = found if call.ignored is None else found[found != call.ignored]
    if bool((found != found.round()).any()):
        raise SpecError(
            f"{name} is for classes, and y holds {_some(found, words)}: take a loss of values "
            "such as MSELoss"
        )
    if not len(found) or (found.min() >= 0 and found.max() < call.columns):
        return None, ()
    complete = call.ignored is None or bool((target != call.ignored).all())
    if len(found) == call.columns and complete:
        return found, tuple(range(call.columns))
    raise SpecError(
        f"y holds {_some(found, words)}, and the model has {call.columns} outputs: encode labels "
        f"as 0 … {call.columns - 1}, or build a model with an output for each"
    )


def _shares(target: torch.Tensor, output: Any) -> bool:
    """Return whether a target has one column for each class: shares, or 0 and 1."""
    return any(o.shape[1:] == target.shape[1:] and target.ndim > 1 for o in tensors(output))


def _some(found: torch.Tensor, words: bool) -> str:
    if words:
        return f"{len(found)} labels"
    shown = ", ".join(f"{value:g}" for value in found[:4].tolist())
    return shown if len(found) <= 4 else f"{shown} … {found[-1].item():g}"


def name_of_loss(loss: Any) -> str:
    """Return a loss's name for messages."""
    return getattr(loss, "__name__", type(loss).__name__)
