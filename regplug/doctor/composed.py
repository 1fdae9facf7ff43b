"""What nodes make of forms of weights where no rule of their own serves: data, others, norms."""

from collections.abc import Sequence
from typing import Any

from regplug.doctor.forms import Form, Value

__all__ = ["DATA", "joint", "other", "unary_on_loss", "unknown"]

DATA = Value(data=True)
"""What depends on data, and is no term of weights alone."""


def unknown(node: Any, inputs: Sequence[Value | None]) -> Value:
    """Return what a node makes of its inputs of which nothing else is known."""
    known = [value for value in inputs if value is not None]
    mixed = any(value is None for value in inputs) or any(value.data for value in known)
    if mixed:
        kept = [f for value in known if value.data for f in value.scalar_forms if f.join]
        # One number on its way up, such as a loss that is scaled or gathered.
        return Value(tuple(kept) if len(known) == 1 else (), data=True)
    return other(known)


def other(values: Sequence[Value]) -> Value:
    """Return a value of these weights of which the form is not known."""
    leaves: dict[Any, None] = {}
    for value in values:
        for form in value.forms:
            leaves.update(dict.fromkeys(form.leaves))
    return Value((Form("other", tuple(leaves)),)) if leaves else DATA


def joint(forms: Sequence[Form]) -> Value:
    """Return the norm of several weights together: each is read by itself."""
    leaves = tuple(dict.fromkeys(leaf for form in forms for leaf in form.leaves))
    if any(form.rows or form.anchored for form in forms):
        return Value((Form("other", leaves),))
    return Value(tuple(form.as_("norm", together=leaves) for form in forms))


def unary_on_loss(value: Value | None) -> Value:
    """Return what a function of one argument makes of a loss."""
    if value is None or not value.data:
        return DATA if value is None else other([value])
    return Value(tuple(form for form in value.scalar_forms if form.join), data=True)
