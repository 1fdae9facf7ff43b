"""Dropout by a function, which no module of the model tells of."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["dropout_of"]

_NAMES = (
    *("dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("alpha_dropout", "feature_dropout", "feature_alpha_dropout"),
)


def dropout_of(
    function: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> tuple[float, bool] | None:
    """Return the rate of a call of dropout, and whether it drops; None if it is another call."""
    name = getattr(function, "__name__", "")
    if name == "scaled_dot_product_attention":
        rate, drops = _given(arguments, keywords, 4, "dropout_p", 0.0), True
    elif name in _NAMES:
        rate = _given(arguments, keywords, 1, "p", 0.5)
        drops = bool(_given(arguments, keywords, 2, "training", True))
    else:
        return None
    return (float(rate), drops) if isinstance(rate, float | int) and rate > 0 else None


def _given(
    arguments: Sequence[Any], keywords: Mapping[str, Any], place: int, name: str, default: Any
) -> Any:
    return arguments[place] if len(arguments) > place else keywords.get(name, default)
