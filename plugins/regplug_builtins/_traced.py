"""Torch's functions of a rate written with it as a tensor, for graphs that are traced.

Torch's own ask a tensor for its number, which breaks the graph.
"""

# ruff: noqa: A002 - calls may name torch's arguments, of which one is "input".

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["TRACED"]

_ALPHA = 1.7580993408473766  # −λα of SELU: the value that alpha dropout sets


def _noise(like: Tensor, p: Tensor, *, channels: bool = False, batched: bool = True) -> Tensor:
    """Return True where an element, or a whole channel, is kept."""
    shape = like.shape
    if channels:
        leading = 2 if batched else 1
        shape = shape[:leading] + (1,) * (like.ndim - leading)
    return torch.rand(shape, device=like.device) >= p


def _scaled(x: Tensor, kept: Tensor, p: Tensor, inplace: bool) -> Tensor:
    # At rate 1 nothing is kept, and a scale of 1/0 would make the gradient NaN.
    scale = torch.where(p < 1, 1 / (1 - p), 0.0)
    out = torch.where(kept, x * scale, 0.0)
    return x.copy_(out) if inplace else out


def _alpha(x: Tensor, kept: Tensor, p: Tensor, inplace: bool) -> Tensor:
    a = torch.where(p < 1, 1 / ((1 + _ALPHA**2 * p) * (1 - p)).sqrt(), 0.0)
    out = torch.where(kept, x * a, -_ALPHA * a) + _ALPHA * a * p
    return x.copy_(out) if inplace else out


def _dropout(input: Tensor, p: Tensor, training: bool = True, inplace: bool = False) -> Tensor:
    return _scaled(input, _noise(input, p), p, inplace) if training else input


def _dropout1d(input: Tensor, p: Tensor, training: bool = True, inplace: bool = False) -> Tensor:
    kept = _noise(input, p, channels=True, batched=input.ndim > 2)
    return _scaled(input, kept, p, inplace) if training else input


def _dropout2d(input: Tensor, p: Tensor, training: bool = True, inplace: bool = False) -> Tensor:
    return _scaled(input, _noise(input, p, channels=True), p, inplace) if training else input


def _dropout3d(input: Tensor, p: Tensor, training: bool = True, inplace: bool = False) -> Tensor:
    kept = _noise(input, p, channels=True, batched=input.ndim > 4)
    return _scaled(input, kept, p, inplace) if training else input


# torch's signatures of these two have another default.
def _alpha_dropout(
    input: Tensor, p: Tensor, training: bool = False, inplace: bool = False
) -> Tensor:
    return _alpha(input, _noise(input, p), p, inplace) if training else input


def _feature_alpha_dropout(
    input: Tensor, p: Tensor, training: bool = False, inplace: bool = False
) -> Tensor:
    kept = _noise(input, p, channels=True)
    return _alpha(input, kept, p, inplace) if training else input


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: Any = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return scaled dot-product attention as its documentation writes it out.

    The fused kernels want the rate as a constant, so here the weights are made in full.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    scale = query.size(-1) ** -0.5 if scale is None else scale
    scores = query @ key.transpose(-2, -1) * scale
    if is_causal:
        square = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device)
        scores = scores.masked_fill(~square.tril(), float("-inf"))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return _dropout(torch.softmax(scores, -1), dropout_p) @ value


def _cross_entropy(
    input: Tensor, target: Tensor, *arguments: Any, label_smoothing: Any = 0.0, **options: Any
) -> Tensor:
    """Return the loss, which is a straight line in the smoothing, from its two ends."""
    if len(arguments) > _BEFORE_SMOOTHING:
        *arguments, label_smoothing = arguments  # type: ignore[assignment]
    loss: Callable[..., Tensor] = F.cross_entropy
    plain = loss(input, target, *arguments, label_smoothing=0.0, **options)
    smooth = loss(input, target, *arguments, label_smoothing=1.0, **options)
    # Without smoothing a class may be impossible, of which 0·∞ would be no number.
    added = torch.where(label_smoothing > 0, label_smoothing * (smooth - plain), 0.0)
    return plain + added.to(plain.dtype)


_BEFORE_SMOOTHING = 5  # of torch's arguments: weight, size_average, ignore_index, reduce, reduction

TRACED: dict[Any, Callable[..., Any]] = {
    F.dropout: _dropout,
    F.dropout1d: _dropout1d,
    F.dropout2d: _dropout2d,
    F.dropout3d: _dropout3d,
    F.alpha_dropout: _alpha_dropout,
    F.feature_alpha_dropout: _feature_alpha_dropout,
    F.scaled_dot_product_attention: _attention,
    F.cross_entropy: _cross_entropy,
}
"""What to call in the place of which function."""
