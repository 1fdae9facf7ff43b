"""A dropout rate that can move under ``torch.compile``, with no module swapped.

A float in ``nn.Dropout.p`` is a constant of the compiled graph: each new value compiles anew, and
after eight torch gives up. :class:`Rate` is a 0-d tensor in its place. To eager code it is as good
as the float; in a traced graph, where torch's own dropouts would ask it for its number and break
the graph, it puts the same dropouts there, written with the rate as a tensor.
"""

# ruff: noqa: A002 - calls may name torch's arguments, of which one is "input".

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Rate"]

_ALPHA = 1.7580993408473766  # −λα of SELU: the value that alpha dropout sets


class Rate(Tensor):
    """A probability: a 0-d float32 tensor on the CPU that compiled graphs take as an input.

    Copies, pickles and checkpoints of a model hold a plain float instead.

    Args:
        value: the rate, within [0, 1].

    >>> rate = Rate(0.5)
    >>> dropout = torch.nn.Dropout(0.1)
    >>> dropout.p = rate
    >>> rate.set(0.1)
    >>> dropout, float(rate), rate > 0.05
    (Dropout(p=0.1, inplace=False), 0.1, True)
    """

    value: float
    tensor: Tensor

    def __new__(cls, value: float) -> "Rate":
        tensor = torch.tensor(value, dtype=torch.float32, device="cpu")
        self = Tensor._make_subclass(cls, tensor)
        self.value, self.tensor = value, tensor  # both tensors share one memory
        return self

    def set(self, value: float) -> None:
        """Set the rate, here and in every graph that was compiled with it."""
        self.value = value
        self.tensor.fill_(value)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Hand functions the plain tensor, and dropouts that are traced the ones written here."""
        if torch.compiler.is_compiling():
            if func in _COMPARISONS:
                return _COMPARISONS[func](*args)
            func = _TRACED.get(func, func)
        args = [x.tensor if isinstance(x, Rate) else x for x in args]
        kwargs = {k: x.tensor if isinstance(x, Rate) else x for k, x in (kwargs or {}).items()}
        return func(*args, **kwargs)

    def item(self) -> float:
        """Return the rate as a float."""
        return self.value

    def __float__(self) -> float:
        return self.value

    def __bool__(self) -> bool:
        return bool(self != 0)

    # Dynamo may compile these by themselves, between graph breaks. So each states its operation:
    # which function came to __torch_function__ is not guarded on for the slots of operators.

    def __lt__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value < other
        known = _bounds(other)
        return torch.lt(self.tensor, other) if known is None else known > 0

    def __gt__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value > other
        known = _bounds(other)
        return torch.gt(self.tensor, other) if known is None else known < 0

    def __le__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value <= other
        known = _bounds(other)
        return torch.le(self.tensor, other) if known is None else known > 0

    def __ge__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value >= other
        known = _bounds(other)
        return torch.ge(self.tensor, other) if known is None else known < 0

    def __eq__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value == other
        return torch.eq(self.tensor, other) if _bounds(other) is None else False

    def __ne__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return self.value != other
        return torch.ne(self.tensor, other) if _bounds(other) is None else True

    def __rsub__(self, other: Any) -> Any:
        if not torch.compiler.is_compiling():
            return other - self.value
        return torch.rsub(self.tensor, other)

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(self.value)

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)

    def __deepcopy__(self, memo: Any) -> float:
        return self.value

    def __reduce_ex__(self, protocol: Any) -> Any:
        return float, (self.value,)


def _bounds(other: Any) -> int | None:
    """Return 1 if any rate lies below ``other``, −1 if above, None if it depends on the rate.

    At 0 and 1 exactly code takes shortcuts. The traced graph is the general one for rates in
    between, which gives the same at both ends.
    """
    if isinstance(other, int | float):
        if other <= 0:
            return -1
        if other >= 1:
            return 1
    return None


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


# A traced operator arrives as one of these.
_COMPARISONS: dict[Any, Callable[..., Any]] = {
    function: getattr(Rate, f"__{name}__")
    for name in ("lt", "le", "eq", "ne", "gt", "ge")
    for function in (getattr(Tensor, f"__{name}__"), getattr(operator, name))
}
_TRACED: dict[Any, Callable[..., Any]] = {
    F.dropout: _dropout,
    F.dropout1d: _dropout1d,
    F.dropout2d: _dropout2d,
    F.dropout3d: _dropout3d,
    F.alpha_dropout: _alpha_dropout,
    F.feature_alpha_dropout: _feature_alpha_dropout,
    F.scaled_dot_product_attention: _attention,
}
