"""An element-wise formula as data: a short list of operations, in the order of their execution.

Its numbers are not part of it. They are arguments of the kernels that are made of it, so that a
schedule, or a learning rate, leaves the kernel what it is.
"""

from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "COMPARISONS",
    "LOGICAL",
    "SLOW",
    "TRUTHS",
    "Expression",
    "Recording",
    "Step",
    "arguments",
]

Step: TypeAlias = tuple[str, int] | tuple[str, int, int] | tuple[str, int, int, int]
"""An operation and the places of its arguments; ``("input", column)``, ``("number", place)`` and
``("scalar", column)``, the same 0-d tensor for a whole row, have one of their own."""

COMPARISONS = frozenset(["gt", "ge", "lt", "le", "eq", "ne"])
LOGICAL = frozenset(["and", "or"])
SLOW = frozenset(
    ["exp", "expm1", "log", "log1p", "tanh", "sigmoid", "sin", "cos", "sinh", "cosh", "pow"]
)
"""Operations for which torch has vectors of its own on a CPU, and a compiled loop has calls."""

TRUTHS = COMPARISONS | LOGICAL | {"isnan", "isfinite", "not"}
"""Operations whose results are true or false."""

_LEAVES = frozenset(["input", "number", "scalar", "count", "groups"])


@dataclass(frozen=True)
class Expression:
    """A formula of corresponding elements of columns of tensors.

    Attributes:
        steps: the operations; each has the results of earlier ones as arguments.
        result: the place of the step whose result it is.
        columns: how many columns of tensors there are.
        target: the column that gets the result; None for a sum of the results of all elements.
    """

    steps: tuple[Step, ...]
    result: int
    columns: int
    target: int | None

    @property
    def numbers(self) -> int:
        """How many numbers it takes."""
        return 1 + max((step[1] for step in self.steps if step[0] == "number"), default=-1)

    def truths(self) -> frozenset[int]:
        """Return the places of results that are true or false."""
        return frozenset(i for i, step in enumerate(self.steps) if step[0] in TRUTHS)

    def needed(self) -> list[int]:
        """Return the places of the steps that the result is made of, in order."""
        found, open_ = set(), [self.result]
        while open_:
            place = open_.pop()
            if place not in found:
                found.add(place)
                open_ += arguments(self.steps[place])
        return sorted(found)

    def names(self) -> set[str]:
        """Return the operations that the result is made of."""
        return {self.steps[place][0] for place in self.needed()}

    def inputs(self) -> list[int]:
        """Return the columns whose elements are read."""
        steps = [self.steps[place] for place in self.needed()]
        return sorted({step[1] for step in steps if step[0] == "input"})

    def uniform(self) -> frozenset[int]:
        """Return the places of results that are the same for all elements of a row."""
        found: set[int] = set()
        for place, step in enumerate(self.steps):
            name, parts = step[0], arguments(step)
            if name in ("number", "scalar") or (parts and found.issuperset(parts)):
                found.add(place)
        return frozenset(found)

    def is_slow(self) -> bool:
        """Whether the elements go through functions that torch computes in vectors."""
        uniform = self.uniform()
        return any(self.steps[i][0] in SLOW and i not in uniform for i in self.needed())


def arguments(step: Step) -> tuple[int, ...]:
    """Return the places that a step reads; the last one of a loop is how many rounds it has."""
    if step[0] in _LEAVES:
        return ()
    return step[1:3] if step[0] == "loop" else step[1:]


class Recording:
    """The steps and numbers of a formula while it is traced."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.numbers: list[float] = []
        self.columns = 0

    def number(self, value: float) -> int:
        """Return the place of a number."""
        self.numbers.append(value)
        return self.step("number", len(self.numbers) - 1)

    def step(self, *step: str | int) -> int:
        """Return the place of a new step."""
        self.steps.append(step)  # type: ignore[arg-type]
        return len(self.steps) - 1

    def expression(self, result: int, target: int | None) -> Expression:
        """Return what was recorded."""
        return Expression(tuple(self.steps), result, self.columns, target)
