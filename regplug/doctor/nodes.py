"""What each node of an autograd graph makes of forms of weights: by the name of the node.

Nothing but names and plain numbers is asked of a node: a look at the tensors that it saved would
have a checkpoint compute its part of the model anew.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from regplug.doctor.forms import ELEMENTS, SUMS, Form, Spot, Value, merged

__all__ = ["value_of"]

Rule = Callable[[Any, int, Sequence[Value | None]], Value]

_DATA = Value(data=True)
_NUMBERED = re.compile(r"Backward\d*(Scalar|List|Tensor|ScalarList|_copy)?$")

# They show the same weights in another place, shape or precision.
_SAME = {
    *("Alias", "AsStrided", "Clone", "Copy", "Detach", "Diagonal", "Flatten", "Narrow", "Permute"),
    *("ReshapeAlias", "Select", "Slice", "Squeeze", "SqueezeBackward", "T", "ToCopy", "Transpose"),
    *("Unfold", "Unsqueeze", "UnsafeView", "View", "ViewAs", "Unbind", "Split", "SplitWithSizes"),
    *("Index", "IndexSelect", "MaskedSelect", "Contiguous", "UnsafeSplit", "Roll", "Flip", "Real"),
    *("_ToTorchTensor", "_FromTorchTensor", "Redistribute", "ToDevice", "ReshapeCopy", "Expand"),
    *("ViewAsReal", "Movedim", "NestedTensorBuffer", "Tril", "Triu", "Chunk", "Swapaxes", "Neg"),
}
_SUM_OF_BOTH = {"Add", "Sub", "Rsub", "ForeachAdd", "ForeachSub"}


def value_of(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    """Return what one output of ``node`` is made of.

    Args:
        node: the node.
        output: which of its outputs.
        inputs: what its inputs are made of; None for what needs no gradient.
    """
    name = _NUMBERED.sub("", node.name())
    known = [value for value in inputs if value is not None]
    if name.startswith("Foreach"):
        inputs, known = _foreach(output, inputs, node)
        name = name.removeprefix("Foreach")
    if name in _SAME:
        return known[0] if known else _DATA
    if name in ("Cat", "Stack"):
        return _joined(known)
    rule = _RULES.get(name)
    if rule is not None:
        return rule(node, output, inputs)
    return _unknown(node, inputs)


def _foreach(
    output: int, inputs: Sequence[Value | None], node: Any
) -> tuple[list[Value | None], list[Value]]:
    """Return what of the inputs this one output is made from."""
    lists = 2 if "List" in node.name() and len(inputs) % 2 == 0 else 1
    size = len(inputs) // lists
    own = [
        inputs[output + part * size] for part in range(lists) if output + part * size < len(inputs)
    ]
    return own, [value for value in own if value is not None]


def _unknown(node: Any, inputs: Sequence[Value | None]) -> Value:
    known = [value for value in inputs if value is not None]
    mixed = any(value is None for value in inputs) or any(value.data for value in known)
    if mixed:
        kept = [f for value in known if value.data for f in value.scalar_forms if f.join]
        # One number on its way up, such as a loss that is scaled or gathered.
        return Value(tuple(kept) if len(known) == 1 else (), data=True)
    return _other(known)


def _other(values: Sequence[Value]) -> Value:
    leaves: dict[Any, None] = {}
    for value in values:
        for form in value.forms:
            leaves.update(dict.fromkeys(form.leaves))
    return Value((Form("other", tuple(leaves)),)) if leaves else _DATA


def _joined(values: Sequence[Value]) -> Value:
    if any(value.data for value in values):
        return Value(tuple(f for value in values for f in value.scalar_forms), data=True)
    forms: dict[Any, Form] = {}
    for value in values:
        for form in value.forms:
            # Weights that stand one after another are as one; sums are each their own.
            key = (form.kind, form.anchored, form.scales) if form.kind == "w" else len(forms)
            if key in forms:
                leaves = dict.fromkeys((*forms[key].leaves, *form.leaves))
                forms[key] = form.as_("w", leaves=tuple(leaves))
            else:
                forms[key] = form
    return Value(tuple(forms.values()), apart=True)


# --- rules -------------------------------------------------------------------------------------


def _add(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    known = [value for value in inputs if value is not None]
    if len(known) == 1:
        return _shifted(known[0]) if len(inputs) > 1 and len(known) < len(inputs) else known[0]
    if all(value.only is not None and value.only.kind == "w" for value in known):
        return _other(known)
    return merged(known, node)


def _shifted(value: Value) -> Value:
    """Return what a value is to which a constant is added: an anchor, if it is of weights still."""
    forms = tuple(
        form.as_("w", anchored=True) if form.kind == "w" else form
        for form in value.forms
        if form.kind in ("w", *SUMS) or value.data
    )
    lost = [form for form in value.forms if form.kind in ("abs", "square") and not value.data]
    return Value((*forms, *(form.as_("other") for form in lost)), value.data)


def _multiply(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    known = [value for value in inputs if value is not None]
    if len(known) == 1:
        value = known[0]
        if value.only is not None and value.only.kind == "w" and len(inputs) > 1:
            form = value.only
            return Value((form.as_("w", scales=(*form.scales, node)),))
        return value
    return _product(node, known)


def _product(node: Any, known: Sequence[Value]) -> Value:
    first, second = known[0].only, known[1].only
    if any(value.data for value in known):
        return _DATA
    if first is not None and second is not None and first.leaves == second.leaves:
        kinds = {first.kind, second.kind}
        if kinds <= {"w", "abs"} and first.anchored == second.anchored:
            return Value((first.as_("square", spot=Spot(node)),))
        if kinds == {"norm"}:
            return Value((first.as_("square_sum", spot=Spot(node)),))
    return _other(known)


def _divide(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    return inputs[0] if inputs[0] is not None and None in inputs[1:] else _unknown(node, inputs)


def _power(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    exponent = getattr(node, "_saved_exponent", None)
    value = inputs[0]
    if value is None or value.data or not isinstance(exponent, int | float):
        return _unary_on_loss(value)
    if exponent == 0.5:
        return _square_root(node, output, inputs)
    if exponent != 1 and value.is_sum:
        return _other([value])
    forms = tuple(_to_the(form, float(exponent), node, output) for form in value.forms)
    return Value(forms, apart=value.apart)


def _to_the(form: Form, exponent: float, node: Any, output: int) -> Form:
    if exponent == 1:
        return form
    if exponent == 2 and form.kind in ("w", "abs"):
        return form.as_("square", spot=Spot(node, output))
    if exponent == 2 and form.kind in ("norm", "row_norms"):
        return form.as_("square_sum", spot=Spot(node, output), together=())
    return form.as_("other", spot=None)


def _square_root(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    value = inputs[0]
    if value is None or value.data:
        return _unary_on_loss(value)
    if any(form.kind != "square_sum" for form in value.forms):
        return _other([value])
    if value.is_sum:
        return _joint(value.forms)
    forms = [
        form.as_("row_norms", spot=None) if form.rows else form.as_("norm") for form in value.forms
    ]
    return Value(tuple(forms), apart=value.apart)


def _joint(forms: Sequence[Form]) -> Value:
    """Return the norm of several weights together: each is read by itself."""
    leaves = tuple(dict.fromkeys(leaf for form in forms for leaf in form.leaves))
    if any(form.rows or form.anchored for form in forms):
        return Value((Form("other", leaves),))
    return Value(tuple(form.as_("norm", together=leaves) for form in forms))


def _unary_on_loss(value: Value | None) -> Value:
    if value is None or not value.data:
        return _DATA if value is None else _other([value])
    return Value(tuple(form for form in value.scalar_forms if form.join), data=True)


def _absolute(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    value = inputs[0]
    if value is None or value.data:
        return _unary_on_loss(value)
    forms = [
        form.as_("abs", spot=Spot(node, output)) if form.kind == "w" else form
        for form in value.forms
    ]
    return Value(tuple(forms), apart=value.apart)


_SUMMED = {"abs": "abs_sum", "square": "square_sum", "w": "other"}


def _sum(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    value = inputs[0]
    if value is None:
        return _DATA
    dims = getattr(node, "_saved_dim", None)
    rows = dims is not None and not _is_over_all(node, dims)
    forms = tuple(
        form.as_(_SUMMED.get(form.kind, form.kind), rows=form.rows or rows) for form in value.forms
    )
    return Value(tuple(f for f in forms if f.kind in SUMS), value.data)


def _is_over_all(node: Any, dims: Sequence[int]) -> bool:
    sizes = getattr(node, "_saved_self_sym_sizes", None)
    return sizes is not None and len(sizes) == len(dims)


def _norm(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    value = inputs[0]
    order = getattr(node, "_saved_ord", getattr(node, "_saved_p", 2))
    order = 2.0 if order is None else float(order)
    dims = getattr(node, "_saved_dim", None)
    if value is None or value.data:
        return _DATA
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
        return _joint(forms)
    if order == 1 and all(form.kind in ("norm", "abs_sum", "row_norms") for form in forms):
        return Value(forms)
    return _other([value])


def _all_dims(form: Form, dims: Sequence[int]) -> bool:
    """Whether a norm along ``dims`` is one of all elements."""
    leaves = [getattr(leaf, "variable", None) for leaf in form.leaves]
    return len(leaves) == 1 and leaves[0] is not None and len(set(dims)) == leaves[0].ndim


def _distance(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    """‖w − anchor‖, of which the anchor is seen by the numbers alone."""
    known = [value for value in inputs if value is not None]
    if len(known) != 1 or known[0].only is None or known[0].only.kind != "w":
        return _unknown(node, known if len(known) == 2 else inputs)
    form = known[0].only
    if getattr(node, "_saved_p", 2) == 1:
        return Value((form.as_("abs_sum", spot=Spot(node, output), anchored=True),))
    return Value((form.as_("other", anchored=True),))


def _squared_error(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    known = [value for value in inputs if value is not None]
    if len(known) != 1 or known[0].only is None or known[0].only.kind != "w":
        return _DATA if any(value.data for value in known) else _other(known)
    form = known[0].only
    reduction = getattr(node, "_saved_reduction", 1)
    spot = Spot(node, output, "mean" if reduction == 1 else "level")
    return Value(
        (form.as_("square" if reduction == 0 else "square_sum", spot=spot, anchored=True),)
    )


def _robust_error(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    known = [value for value in inputs if value is not None]
    forms = [value.only for value in known]
    if any(value.data for value in known) or any(f is None or f.kind != "w" for f in forms):
        return _DATA
    return _other(known)


def _self_product(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    """A matrix or vector times itself, which is a sum of squares if it is a number."""
    known = [value for value in inputs if value is not None]
    if len(known) < len(inputs) or any(value.data for value in known):
        return _DATA
    first, second = known[0].only, known[1].only
    if (
        first is not None
        and second is not None
        and first.leaves == second.leaves
        and (first.kind, second.kind) == ("w", "w")
        and len(first.leaves) == 1
    ):
        return Value((first.as_("square_sum", spot=Spot(node, output), quad=True),))
    return _other(known)


def _trace(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    value = inputs[0]
    form = None if value is None else value.only
    if form is not None and form.quad:
        return Value((form.as_("square_sum", spot=Spot(node, output), quad=False),))
    return _unknown(node, inputs)


def _of_data(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    return _DATA


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("Add", "Sub", "Rsub"), _add),
    **dict.fromkeys(("Mul", "MulBackward"), _multiply),
    "Div": _divide,
    "Pow": _power,
    "Sqrt": _square_root,
    "Abs": _absolute,
    **dict.fromkeys(("Sum", "Mean", "Nansum"), _sum),
    **dict.fromkeys(("LinalgVectorNorm", "Norm"), _norm),
    "Dist": _distance,
    "MseLoss": _squared_error,
    **dict.fromkeys(("SmoothL1Loss", "HuberLoss"), _robust_error),
    **dict.fromkeys(("Dot", "Vdot", "Mm", "Bmm", "Mv"), _self_product),
    "Trace": _trace,
    **dict.fromkeys(("Embedding", "EmbeddingBag", "NllLoss", "Gather"), _of_data),
}

assert set(ELEMENTS).isdisjoint(SUMS)
