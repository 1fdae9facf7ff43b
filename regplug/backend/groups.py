"""What a parameter group of an optimizer says: its learning rate, and the sign of its objective."""

from collections.abc import Mapping
from typing import Any

import torch

from regplug.errors import RegplugError

__all__ = ["Group", "learning_rate", "number", "sign"]


Group = dict[str, Any]


def sign(group: Mapping[str, Any]) -> float:
    """Return −1.0 for a group that maximizes its objective, so that penalties still shrink."""
    return -1.0 if group.get("maximize") else 1.0


def number(group: Mapping[str, Any], key: str, default: float = 0.0) -> float:
    """Return the number that a group has under ``key``; ``default`` where there is none.

    >>> number({"lr": torch.tensor([0.5]), "weight_decay": None}, "lr")
    0.5
    >>> number({"lr": 0.5, "weight_decay": None}, "weight_decay")
    0.0
    """
    value = group.get(key)
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 else default
    return float(value) if isinstance(value, float | int) else default


def learning_rate(group: Mapping[str, Any]) -> Any:
    """Return the group's learning rate as the optimizer itself uses it, a float or a 0-d tensor.

    Raises:
        RegplugError: there is none: a hand-written update that did not say, or an optimizer that
            finds its own.
    """
    lr = group.get("lr")
    if lr is None:
        raise RegplugError(
            "the learning rate is not known, and this plugin scales with it: write `with "
            "session.step(lr=…):` for an update by hand; an optimizer whose groups have no lr has "
            "settings of its own for this, or use a penalty with delivery='step'"
        )
    # torch takes any tensor of one element; in a formula it would change the shape of things.
    return lr.reshape(()) if isinstance(lr, torch.Tensor) and lr.ndim else lr
