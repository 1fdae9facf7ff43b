"""Rules of nodes that sum: sums, norms, distances, errors, products of a weight with itself."""

from collections.abc import Sequence
from typing import Any

from regplug.doctor.composed import DATA, joint, other, unknown
from regplug.doctor.forms import SUMS, Form, Spot, Value

__all__ = [
    "distance",
    "norm",
    "robust_error",
    "self_product",
    "squared_error",
    "summed_up",
    "trace",
]

_SUMMED = {"abs": "abs_sum", "square": "square_sum", "w": "other"}


def summed_up(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    """A sum or mean, of all elements or along some dimensions."""
    value = inputs[0]
    if value is None:
        return DATA
    dims = getattr(node, "_saved_dim", None)
    rows = dims is not None and not _is_over_all(node, dims)
    forms = tuple(
        form.as_(_SUMMED.get(form.kind, form.kind), rows=form.rows or rows) for form in value.forms
    )
    return Value(tuple(f for f in forms if f.kind in SUMS), value.data)


def _is_over_all(node: Any, dims: Sequence[int]) -> bool:
    sizes = getattr(node, "_saved_self_sym_sizes", None)
    return sizes is not None and len(sizes) == len(dims)


def norm(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    """A norm, of all elements or along some dimensions."""
    value = inputs[0]
    order = getattr(node, "_saved_ord", getattr(node, "_saved_p", 2))
    order = 2.0 if order is None else float(order)
    dims = getattr(node, "_saved_dim", None)
    if value is None or value.data:
        return DATA
    forms = value.forms
    if all(form.kind in ("w", "abs") for form in forms) and len(forms) == 1:
        form = forms[0]
        partly = dims is not None and len(dims) > 0 and not _all_dims(form, dims)
        if order == 1:
            return Value((form.as_("abs_sum", spot=Spot(node, output), rows=partly),))
        if order == 2:
            kind = "row_norms" if partly else "norm"
            return Value((form.as_(kind, spot=Spot(node, output, "norm"), rows=partly),))
        return Value((form.as_("other", spot=None),))
    if order == 2 and all(form.kind == "norm" for form in forms):
        return joint(forms)
    if order == 1 and all(form.kind in ("norm", "abs_sum", "row_norms") for form in forms):
        return Value(forms)
    return other([value])


def _all_dims(form: Form, dims: Sequence[int]) -> bool:
    """Whether a norm along ``dims`` is one of all elements."""
    leaves = [getattr(leaf, "variable", None) for leaf in form.leaves]
    return len(leaves) == 1 and leaves[0] is not None and len(set(dims)) == leaves[0].ndim


def distance(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    """‖w − anchor‖, of which the anchor is seen by the numbers alone."""
    known = [value for value in inputs if value is not None]
    if len(known) != 1 or known[0].only is None or known[0].only.kind != "w":
        return unknown(node, known if len(known) == 2 else inputs)
    form = known[0].only
    if getattr(node, "_saved_p", 2) == 1:
        return Value((form.as_("abs_sum", spot=Spot(node, output), anchored=True),))
    return Value((form.as_("other", anchored=True),))


def squared_error(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    """The mean or sum of (w − anchor)²."""
    known = [value for value in inputs if value is not None]
    if len(known) != 1 or known[0].only is None or known[0].only.kind != "w":
        return DATA if any(value.data for value in known) else other(known)
    form = known[0].only
    reduction = getattr(node, "_saved_reduction", 1)
    spot = Spot(node, output, "mean" if reduction == 1 else "level")
    return Value(
        (form.as_("square" if reduction == 0 else "square_sum", spot=spot, anchored=True),)
    )


def robust_error(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    """Errors that are squares near 0 and linear far from it."""
    known = [value for value in inputs if value is not None]
    forms = [value.only for value in known]
    if any(value.data for value in known) or any(f is None or f.kind != "w" for f in forms):
        return DATA
    return other(known)


def self_product(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    """A matrix or vector times itself, which is a sum of squares if it is a number."""
    known = [value for value in inputs if value is not None]
    if len(known) < len(inputs) or any(value.data for value in known):
        return DATA
    first, second = known[0].only, known[1].only
    if (
        first is not None
        and second is not None
        and first.leaves == second.leaves
        and (first.kind, second.kind) == ("w", "w")
        and len(first.leaves) == 1
    ):
        return Value((first.as_("square_sum", spot=Spot(node, output), quad=True),))
    return other(known)


def trace(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    """The trace of a weight times itself."""
    value = inputs[0]
    form = None if value is None else value.only
    if form is not None and form.quad:
        return Value((form.as_("square_sum", spot=Spot(node, output), quad=False),))
    return unknown(node, inputs)
