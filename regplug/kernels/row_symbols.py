"""A formula of rows in torch, recorded: element by element but for sums and the like over each row.

A symbol stands for a whole weight, of which each group (a row or a column) is a row here. What a
formula may do beside all that is element by element: sums, means, norms and largest elements over
all dimensions but that of the groups, ``keepdim=True``; ask for the shape, for the length of a
group; and iterate (:func:`regplug.kernels.iterated.iterated`) on what each row has one of. That a
formula can be recorded so proves that it acts on each group by itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from regplug.kernels.expression import SLOW, Expression, arguments
from regplug.kernels.operations import OPERATIONS
from regplug.kernels.symbols import Symbol, Tracing, UntraceableError

__all__ = [
    "REDUCTIONS",
    "RowExpression",
    "RowTracing",
    "levels_of",
    "traced_rows",
]

REDUCTIONS = frozenset(["row_sum", "row_max"])

_ONE_A_ROW = REDUCTIONS | {"carried", "loop"}
_FIXED = ("number", "scalar", "count", "groups")


@dataclass(frozen=True)
class RowExpression(Expression):
    """A formula of the groups of corresponding tensors.

    Beside the steps of other expressions it has ``("count",)`` and ``("groups",)``, of the tensor
    that a row is of; ``("row_sum", x)`` and ``("row_max", x)``; ``("carried", start)``, what a loop
    changes, and ``("loop", carried, found, rounds)``, what it ends with; the steps between the two
    are its body.
    """

    def levels(self) -> list[int]:
        """Return the level of each step: see :func:`levels_of`."""
        return levels_of(self.steps)

    def is_slow(self) -> bool:
        """Whether the elements go through functions that torch computes in vectors."""
        levels = self.levels()
        return any(self.steps[i][0] in SLOW and levels[i] == 2 for i in self.needed())

    def uniform(self) -> frozenset[int]:
        """Return the places of results that are the same for all rows of a tensor."""
        return frozenset(i for i, level in enumerate(self.levels()) if level == 0)


def levels_of(steps: Sequence[Any]) -> list[int]:
    """Return for each step whether there is one result for all (0), for each row (1), or more (2).

    >>> levels_of([("input", 0), ("row_sum", 0), ("number", 0), ("mul", 1, 2), ("mul", 0, 3)])
    [2, 1, 0, 1, 2]
    """
    found: list[int] = []
    extend_levels(found, steps)
    return found


def extend_levels(found: list[int], steps: Sequence[Any]) -> None:
    """Append the levels of the steps that are not in the list yet."""
    for step in steps[len(found) :]:
        name, level = step[0], 0
        if name == "input":
            level = 2
        elif name in _ONE_A_ROW:
            level = 1
        elif name not in _FIXED:
            for place in step[1:]:
                if found[place] > level:
                    level = found[place]
        found.append(level)


class RowTracing(Tracing):
    """The recording of a formula of rows.

    Args:
        dtype: in which the kernel will compute.
        device: of the tensors.
        ndim: the dimensions of the weights.
        axis: the one of the groups, 0 or 1.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, ndim: int, axis: int) -> None:
        super().__init__(dtype, device, _OPERATIONS)
        self.ndim, self.axis = ndim, axis
        self.is_flat = False
        self.levels: list[int] = []  # of the steps so far

    def level(self, symbol: Symbol) -> int:
        """Return 0 for a number, 1 for what each row has one of, 2 for elements."""
        extend_levels(self.levels, self.recording.steps)
        return self.levels[symbol.place]

    def attribute(self, symbol: Symbol, name: str) -> Any:
        """Return the number of dimensions, or the shape as far as it may be asked for."""
        level = self.level(symbol)
        if name == "ndim":
            return self.ndim if level else 0
        if name == "shape" and level:
            return self.shape(level)
        return super().attribute(symbol, name)

    def shape(self, level: int) -> tuple[Any, ...]:
        """Return the number of groups, and that of their elements where it is one dimension's."""
        groups = self.result("groups")
        other: Any = 1 if level == 1 else None
        if level == 2 and self.ndim == 2:
            other = self.result("div", self.result("count").place, groups.place)
        shape = [other] * self.ndim
        shape[self.axis] = groups
        return tuple(shape)

    def numel(self, symbol: Symbol) -> Any:
        """Return the number of elements."""
        level = self.level(symbol)
        return self.result("count" if level == 2 else "groups") if level else 1

    def iterated(self, body: Callable[[Any], Any], start: Symbol, rounds: int) -> Symbol:
        """Record a loop, its body once."""
        if self.level(start) != 1:
            raise UntraceableError("it iterates on what is not one number for each row")
        first = self.place(start)
        carried = self.recording.step("carried", first)
        found = body(self.symbol(carried))
        if type(found) is not Symbol or self.level(found) > 1:
            raise UntraceableError("a round gives what is not one number for each row")
        return self.result("loop", carried, self.place(found), rounds)

    def reduced(self, name: str, x: Any, dim: Any, keepdim: bool) -> Symbol:
        """Record a sum, or the like, over each row."""
        if type(x) is not Symbol or self.level(x) != 2:
            raise UntraceableError("it sums up what each row has one of")
        dims = [dim] if isinstance(dim, int) else list(dim or ())
        over = {d % self.ndim for d in dims if isinstance(d, int)}
        others = set(range(self.ndim)) - {self.axis}
        if not keepdim or not (over == others or (self.is_flat and over == {1})):
            raise UntraceableError("it sums over other dimensions than those of a row, or drops it")
        return self.result(name, self.place(x))

    def per_row(self, total: Symbol) -> Symbol:
        """Record the division of a row's sum by its length."""
        length = self.recording.step(
            "div", self.recording.step("count"), self.recording.step("groups")
        )
        return self.result("div", total.place, length)


def _sum(tracing: RowTracing, x: Any, dim: Any = None, keepdim: bool = False) -> Symbol:
    return tracing.reduced("row_sum", x, dim, keepdim)


def _mean(tracing: RowTracing, x: Any, dim: Any = None, keepdim: bool = False) -> Symbol:
    return tracing.per_row(_sum(tracing, x, dim, keepdim))


def _amax(tracing: RowTracing, x: Any, dim: Any = None, keepdim: bool = False) -> Symbol:
    return tracing.reduced("row_max", x, dim, keepdim)


def _amin(tracing: RowTracing, x: Any, dim: Any = None, keepdim: bool = False) -> Symbol:
    least = _amax(tracing, tracing.result("neg", tracing.place(x)), dim, keepdim)
    return tracing.result("neg", least.place)


def _norm(
    tracing: RowTracing,
    x: Any,
    p: Any = None,
    dim: Any = None,
    keepdim: bool = False,
    **named: Any,
) -> Symbol:
    order = named.pop("ord", p)
    if any(value is not None for value in named.values()):
        raise UntraceableError("it takes a norm in another dtype")
    place = tracing.place(x)
    if order == 1:
        return _sum(tracing, tracing.result("abs", place), dim, keepdim)
    if order == float("inf"):
        return _amax(tracing, tracing.result("abs", place), dim, keepdim)
    if order not in (None, 2, "fro"):
        raise UntraceableError(f"it takes a norm of order {order}")
    squares = _sum(tracing, tracing.result("square", place), dim, keepdim)
    return tracing.result("sqrt", squares.place)


def _flatten(tracing: RowTracing, x: Symbol, start: int = 0, end: int = -1) -> Symbol:
    if start != 1 or end not in (-1, tracing.ndim - 1) or (tracing.axis and tracing.ndim > 2):
        raise UntraceableError("it looks at the shape")
    tracing.is_flat = True
    return x


def _viewed(tracing: RowTracing, x: Symbol, other: Any) -> Symbol:
    if type(other) is not Symbol or tracing.level(other) != tracing.level(x):
        raise UntraceableError("it looks at the shape")
    return x


def _size(tracing: RowTracing, x: Symbol, dim: int | None = None) -> Any:
    shape = tracing.attribute(x, "shape")
    return shape if dim is None else shape[dim]


_OPERATIONS: dict[str, Callable[..., Any]] = {
    **OPERATIONS,
    "sum": _sum,
    "mean": _mean,
    "amax": _amax,
    "amin": _amin,
    "norm": _norm,
    "vector_norm": _norm,
    "linalg_vector_norm": _norm,
    "flatten": _flatten,
    "view_as": _viewed,
    "reshape_as": _viewed,
    "numel": RowTracing.numel,
    "size": _size,
    "dim": lambda tracing, x: tracing.attribute(x, "ndim"),
}


def traced_rows(
    formula: Callable[..., Any], tracing: RowTracing, columns: int, scalars: int, target: int
) -> tuple[RowExpression, tuple[float, ...]]:
    """Return a formula as an expression, and its numbers.

    Raises:
        UntraceableError: it can't be recorded.
    """
    symbols = [tracing.column() for _ in range(columns)]
    symbols += [tracing.column("scalar") for _ in range(scalars)]
    result = formula(*symbols)
    if type(result) is not Symbol:
        raise UntraceableError(f"its result is a {type(result).__name__} that does not depend on w")
    place, steps = tracing.place(result), tracing.recording.steps
    _refuse_leaks(steps)
    expression = RowExpression(tuple(steps), place, tracing.recording.columns, target)
    return expression, tuple(tracing.recording.numbers)


def _refuse_leaks(steps: Sequence[Any]) -> None:
    """Refuse what reads, after a loop, results of its last round."""
    if not any(step[0] == "loop" for step in steps):
        return
    levels, inside = levels_of(steps), set[int]()
    for place, step in enumerate(steps):
        if step[0] != "loop":
            if inside.intersection(arguments(step)):
                raise UntraceableError("it keeps what a round found")
            continue
        moving = {step[1]}
        for later in range(step[1] + 1, place):
            if levels[later] == 1 or moving.intersection(arguments(steps[later])):
                moving.add(later)
        inside |= moving
