"""Which formulas of a penalty belong together, where subclasses write some of them anew.

What an ancestor states is of the formula that it knew: its gradient is that of its value, its lists
are of its gradient. Where a subclass writes the one, the other is not the subclass's any more, and
the base class's takes its place: the gradient by autograd, lists by calls of the formula.

The class itself is changed, when it is made, as Python leaves a class that writes ``__eq__`` no
``__hash__`` of its ancestor's. Only so ``super().gradient(w)`` in a class below is the gradient of
the value that acts, and so is what anybody calls before there is a session.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch

__all__ = [
    "adds_up",
    "author_of_stale_proximal",
    "by_autograd",
    "is_unproven",
    "is_written",
    "settle",
    "settle_instance",
]

# What is stated, and of which formula; each after what it depends on.
_OF = {
    "gradient": "value",
    "proximal": "value",
    "gradients": "gradient",
    "add_gradients": "gradient",
    "proximal_": "proximal",
    "elementwise_steps": "proximal",
    "composition": "proximal",
}


def settle(cls: Any, base: Any) -> None:
    """Give ``cls`` the base class's where what it inherits is of a formula that it writes anew."""
    for name, formula in _OF.items():
        if _is_stale(cls, base, name, formula):
            setattr(cls, name, getattr(base, name))


def _is_stale(cls: Any, base: Any, name: str, formula: str) -> bool:
    author: Any = next(c for c in cls.__mro__ if name in vars(c))
    if author is base:
        return False
    if formula == "gradient" and getattr(author, formula, None) is base.gradient:
        formula = "value"  # whose gradient it is, by autograd
    known = getattr(author, formula, None)
    if known is not None and known is not getattr(base, formula):
        return known is not getattr(cls, formula)
    # Stated with no formula in sight, so for whichever comes; but a gradient that a mixin brings to
    # one value is not that of another one, which the class itself writes over it.
    authors = [c for c in cls.__mro__ if formula in vars(c) and c is not base]
    above = len(authors) > 1 and author in authors[0].__mro__[1:]
    return above and name == "gradient"


def settle_instance(penalty: object, base: Any) -> None:
    """Give ``penalty`` the base class's where formulas were set on the instance."""
    set_here: dict[str, Any] = vars(penalty)
    for name, formula in _OF.items():
        if formula in set_here and name not in set_here:
            made = getattr(base, name)
            set_here[name] = MethodType(made, penalty) if callable(made) else made


def is_unproven(penalty: object, base: Any) -> bool:
    """Whether ``separable``, which can't be made anew, is an ancestor's word for another value."""
    set_here = vars(penalty)
    on_instance = "value" in set_here and "separable" not in set_here
    return on_instance or _is_stale(type(penalty), base, "separable", "value")


def author_of_stale_proximal(penalty: object, base: Any) -> str | None:
    """Return the ancestor whose proximal operator was left out, for it is of another value."""
    for cls in type(penalty).__mro__:
        if vars(cls).get("proximal", base.proximal) is not base.proximal:
            return cls.__name__
    return None


def is_written(author: object, base: Any, name: str) -> bool:
    """Whether ``author`` has a method of that name which is not the base class's."""
    method = getattr(author, name)
    return getattr(method, "__func__", method) is not getattr(base, name)


def by_autograd(
    value: Callable[..., torch.Tensor], w: torch.Tensor, *companions: torch.Tensor
) -> torch.Tensor:
    """Return the gradient of ``value`` at ``w``, differentiable where gradients are recorded."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        if not (create_graph and w.requires_grad):
            w = w.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(value(w, *companions), w, create_graph=create_graph)
    return gradient


def adds_up(value: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor) -> bool:
    """Whether the value of a sample is the sum of those of its parts, as of all that is separable.

    Args:
        value: of a penalty that has no companions.
        like: gives the device.
    """
    dtype = torch.float32 if like.device.type == "mps" else torch.float64
    sample = torch.tensor([-2.1, -0.7, 0.0, 0.3, 0.9, 2.5], dtype=dtype, device=like.device)
    try:
        with torch.no_grad():
            whole = value(sample.view(2, 3))
            parts = value(sample[:2]) + value(sample[2:])
        return torch.allclose(whole, parts, rtol=1e-4, atol=1e-6)
    except Exception:  # it needs two dimensions, say
        return False
