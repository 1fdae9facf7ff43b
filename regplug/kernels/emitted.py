"""An expression as lines of a program, in the language of one compiler or another."""

from collections.abc import Mapping
from dataclasses import dataclass

from regplug.kernels.expression import Expression, arguments

__all__ = ["SAID_ALIKE", "Dialect", "Lines", "bounded", "lines_of"]

SAID_ALIKE: Mapping[str, str] = {
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "and": "{0} & {1}",
    "or": "{0} | {1}",
    "isnan": "{0} != {0}",
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "square": "{0} * {0}",
}
"""Operations for which every language here has Python's operators."""


def bounded(where: str) -> dict[str, str]:
    """Return templates of bounds and extrema, in which either argument that is NaN is the result.

    Args:
        where: a template of a choice: ``{0}`` a condition, then what it chooses from.
    """
    greater, less = (
        where.format(f"({{0}} {sign} {{1}}) | ({{0}} != {{0}})", "{0}", "{1}") for sign in "><"
    )
    return {"at_least": greater, "at_most": less, "maximum": greater, "minimum": less}


@dataclass(frozen=True)
class Dialect:
    """How a language says things.

    Attributes:
        elements: a template for each operation on elements, with ``{0}``, ``{1}``, ``{2}``.
        uniform: templates for operations in double precision, on what all elements share.
        number: the ``{0}``-th number, in double precision.
        narrowed: a double ``{0}`` in the precision of the elements.
        scalar: the value of the 0-d tensor of column ``{0}``, in double precision.
    """

    elements: Mapping[str, str]
    uniform: Mapping[str, str]
    number: str
    narrowed: str
    scalar: str


@dataclass(frozen=True)
class Lines:
    """What computes an expression, once for a row and for each element, and its result's name."""

    once: list[str]
    each: list[str]
    result: str


def lines_of(expression: Expression, dialect: Dialect) -> Lines:
    """Return the lines that compute ``expression``; the element of column c is called ``x<c>``."""
    uniform = expression.uniform()
    once: list[str] = []
    each: list[str] = []
    narrowed: set[int] = set()

    def element(place: int) -> str:
        step = expression.steps[place]
        if step[0] == "input":
            return f"x{step[1]}"
        if place not in uniform:
            return f"v{place}"
        if place not in narrowed:
            narrowed.add(place)
            wide = f"u{place}"
            truth = place in truths
            once.append(f"n{place} = {wide if truth else dialect.narrowed.format(wide)}")
        return f"n{place}"

    truths = expression.truths()
    for place in expression.needed():
        name, *_ = step = expression.steps[place]
        if name == "input":
            continue
        if place not in uniform:
            parts = [element(argument) for argument in arguments(step)]
            each.append(f"v{place} = {dialect.elements[name].format(*parts)}")
        elif name == "number":
            once.append(f"u{place} = {dialect.number.format(step[1])}")
        elif name == "scalar":
            once.append(f"u{place} = {dialect.scalar.format(step[1])}")
        else:
            parts = [f"u{argument}" for argument in arguments(step)]
            once.append(f"u{place} = {dialect.uniform[name].format(*parts)}")
    return Lines(once, each, element(expression.result))
