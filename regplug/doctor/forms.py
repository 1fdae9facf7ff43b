"""What a tensor of a loss is made of, as far as it is made of weights alone.

A :class:`Form` is one penalty in the making: weights, then their absolute values or squares, then
sums and norms of those. A :class:`Value` is a sum of forms, and perhaps of what comes from data.
"""

from dataclasses import dataclass, replace
from typing import Any

__all__ = ["ELEMENTS", "SUMS", "Form", "Spot", "Value", "merged"]

ELEMENTS = ("w", "abs", "square")
"""Forms that are elements of weights still."""

SUMS = {"abs_sum": "l1", "square_sum": "l2", "norm": "norm", "row_norms": "other", "other": "other"}
"""Forms that may be terms of a loss, and the kind of penalty that each is."""


@dataclass(frozen=True)
class Spot:
    """Where in the graph λ is read.

    Attributes:
        node: the node.
        output: which of its outputs' gradients.
        how: ``"level"`` where the gradient itself is λ, ``"mean"`` where λ is its share for one of
            ``size`` elements, ``"norm"`` where it is to be divided by the norm first.
    """

    node: Any
    output: int = 0
    how: str = "level"


@dataclass(frozen=True)
class Form:
    """A penalty in the making.

    Attributes:
        kind: one of :data:`ELEMENTS` or :data:`SUMS`.
        leaves: the leaves of the graph that hold the weights.
        spot: where λ is read, None before that is known.
        anchored: whether something was subtracted from the weights.
        scales: nodes that multiplied the weights by something.
        rows: whether it was summed along some dimensions only.
        quad: whether it is a product of a matrix with itself, which only a scalar makes a square.
        join: the node at which it was added to what comes from data, None as long as it was not.
        together: the leaves of all weights that one norm is of, where each is read by itself.
    """

    kind: str
    leaves: tuple[Any, ...]
    spot: Spot | None = None
    anchored: bool = False
    scales: tuple[Any, ...] = ()
    rows: bool = False
    quad: bool = False
    join: tuple[Any, int] | None = None
    together: tuple[Any, ...] = ()

    def as_(self, kind: str, **changes: Any) -> "Form":
        """Return what became of this form."""
        return replace(self, kind=kind, **changes)


@dataclass(frozen=True)
class Value:
    """A sum of forms, and of what comes from data if ``data`` is true.

    Attributes:
        forms: the forms.
        data: whether there is anything of data in it.
        apart: whether the forms are elements of it beside each other, and no sum yet.
    """

    forms: tuple[Form, ...] = ()
    data: bool = False
    apart: bool = False

    @property
    def is_sum(self) -> bool:
        """Whether several forms are one number by now, of which a power is no power of each."""
        return len(self.forms) > 1 and not self.apart and not self.forms[0].together

    @property
    def only(self) -> Form | None:
        """The one form that this is, None if it is several or more."""
        return self.forms[0] if len(self.forms) == 1 and not self.data else None

    @property
    def scalar_forms(self) -> tuple[Form, ...]:
        """The forms that may be terms of a loss."""
        return tuple(form for form in self.forms if form.kind in SUMS)


def merged(values: "list[Value]", node: Any = None) -> Value:
    """Return the sum of ``values``; forms that meet data at ``node`` remember it."""
    data = any(value.data for value in values)
    forms: list[Form] = []
    for value in values:
        for form in value.forms:
            if data and not value.data and form.join is None:
                if form.kind not in SUMS and form.kind not in ("abs", "square"):
                    continue  # a bias that is added to activations, say
                met = replace(form, join=(node, 0))
            else:
                met = form
            if met not in forms:
                forms.append(met)
    return Value(tuple(forms), data)
