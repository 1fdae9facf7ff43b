"""What each node of an autograd graph makes of forms of weights: by the name of the node.

Nothing but names and plain numbers is asked of a node: a look at the tensors that it saved would
have a checkpoint compute its part of the model anew.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from regplug.doctor import summing
from regplug.doctor.composed import DATA, joint, other, unary_on_loss, unknown
from regplug.doctor.forms import ELEMENTS, SUMS, Form, Spot, Value, merged

__all__ = ["value_of"]

Rule = Callable[[Any, int, Sequence[Value | None]], Value]

_NUMBERED = re.compile(r"Backward\d*(Scalar|List|Tensor|ScalarList|_copy)?$")

# They show the same weights in another place, shape or precision.
_SAME = {
    *("Alias", "AsStrided", "Clone", "Copy", "Detach", "Diagonal", "Flatten", "Narrow", "Permute"),
    *("ReshapeAlias", "Select", "Slice", "Squeeze", "SqueezeBackward", "T", "ToCopy", "Transpose"),
    *("Unfold", "Unsqueeze", "UnsafeView", "View", "ViewAs", "Unbind", "Split", "SplitWithSizes"),
    *("Index", "IndexSelect", "MaskedSelect", "Contiguous", "UnsafeSplit", "Roll", "Flip", "Real"),
    *("ToTorchTensor", "FromTorchTensor", "Redistribute", "ToDevice", "ReshapeCopy", "Expand"),
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
    name = _NUMBERED.sub("", node.name()).lstrip("_")
    known = [value for value in inputs if value is not None]
    if name.startswith("Foreach"):
        inputs, known = _foreach(output, inputs, node)
        name = name.removeprefix("Foreach")
    if name in _SAME:
        return known[0] if known else DATA
    if name in ("Cat", "Stack"):
        return _joined(known)
    rule = _RULES.get(name)
    if rule is not None:
        return rule(node, output, inputs)
    return unknown(node, inputs)


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
        return other(known)
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
        return DATA
    if first is not None and second is not None and first.leaves == second.leaves:
        kinds = {first.kind, second.kind}
        if kinds <= {"w", "abs"} and first.anchored == second.anchored:
            return Value((first.as_("square", spot=Spot(node)),))
        if kinds == {"norm"}:
            return Value((first.as_("square_sum", spot=Spot(node)),))
    return other(known)


def _divide(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    return inputs[0] if inputs[0] is not None and None in inputs[1:] else unknown(node, inputs)


def _power(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    exponent = getattr(node, "_saved_exponent", None)
    value = inputs[0]
    if value is None or value.data or not isinstance(exponent, int | float):
        return unary_on_loss(value)
    if exponent == 0.5:
        return _square_root(node, output, inputs)
    if exponent != 1 and value.is_sum:
        return other([value])
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
        return unary_on_loss(value)
    if any(form.kind != "square_sum" for form in value.forms):
        return other([value])
    if value.is_sum:
        return joint(value.forms)
    forms = [
        form.as_("row_norms", spot=None) if form.rows else form.as_("norm") for form in value.forms
    ]
    return Value(tuple(forms), apart=value.apart)


def _absolute(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    value = inputs[0]
    if value is None or value.data:
        return unary_on_loss(value)
    forms = [
        form.as_("abs", spot=Spot(node, output)) if form.kind == "w" else form
        for form in value.forms
    ]
    return Value(tuple(forms), apart=value.apart)


def _product_added(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    """A product of weights alone that is added to a constant, as by addcmul."""
    known = [value for value in inputs[1:] if value is not None]
    if len(known) < 2 or any(value is not None and value.data for value in inputs):
        return DATA
    return other([value for value in inputs if value is not None])


def _of_data(node: Any, output: int, inputs: Sequence[Value | None]) -> Value:
    return DATA


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("Add", "Sub", "Rsub"), _add),
    **dict.fromkeys(("Mul", "MulBackward"), _multiply),
    "Div": _divide,
    "Pow": _power,
    "Sqrt": _square_root,
    "Abs": _absolute,
    **dict.fromkeys(("Sum", "Mean", "Nansum"), summing.summed_up),
    **dict.fromkeys(("LinalgVectorNorm", "Norm"), summing.norm),
    "Dist": summing.distance,
    "MseLoss": summing.squared_error,
    **dict.fromkeys(("SmoothL1Loss", "HuberLoss"), summing.robust_error),
    **dict.fromkeys(("Dot", "Vdot", "Mm", "Bmm", "Mv"), summing.self_product),
    "Trace": summing.trace,
    "Addcmul": _product_added,
    **dict.fromkeys(("Embedding", "EmbeddingBag", "NllLoss", "Gather"), _of_data),
}

assert set(ELEMENTS).isdisjoint(SUMS)
