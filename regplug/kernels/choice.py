"""Which kernels may execute a formula, and whether they pay: :class:`Choice`.

What compiles them is imported when they first do: a little model never needs it.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from regplug.backend import shards
from regplug.backend.blocks import TINY
from regplug.errors import SpecError

if TYPE_CHECKING:
    from regplug.kernels.engine import Columns, Engine, Formula, Reference
    from regplug.kernels.proof import Prover

__all__ = ["ALTOGETHER", "KERNELS", "Asked", "Choice", "chosen"]

KERNELS = ("auto", "foreach", "numba", "triton")
"""What ``kernels=`` may be: whatever serves, ``torch._foreach`` alone, or one compiler alone."""

ALTOGETHER = 1 << 19
"""Elements from which a CPU's kernels pay that are asked for sums, and for new tensors (measured):
those take two calls, each with a trace of the formula."""

_FEW = 64
_numel = torch.Tensor.numel


def chosen(kernels: str | None) -> str:
    """Return the kernels that are asked for: by argument, by ``REGPLUG_KERNELS``, or any.

    Raises:
        SpecError: there are none of that name.
    """
    found = kernels or os.environ.get("REGPLUG_KERNELS") or "auto"
    if found not in KERNELS:
        raise SpecError(f"kernels must be one of {', '.join(KERNELS)}, got {found!r}")
    return found


class Asked(ABC):
    """What is asked of kernels of one formula, whatever it acts on.

    Args:
        name: the plugin's, for messages.
        kernels: one of :data:`KERNELS`.
    """

    def __init__(self, name: str, kernels: str) -> None:
        self._name, self._kernels = name, kernels

    @property
    @abstractmethod
    def engine(self) -> "Prover":
        """What compiles and launches them, which is imported when it is first needed."""

    @property
    def why_not(self) -> str | None:
        """Why torch's operations are used where a compiler would serve, None if none is known."""
        return self.engine.why_not

    def pays(self, tensors: Sequence[torch.Tensor], least: int = TINY) -> bool:
        """Whether tensors are worth a kernel: torch is done with little ones before one begins.

        Args:
            tensors: whose first one tells the device.
            least: elements that a CPU should have to do.
        """
        if not tensors or self._kernels == "foreach":
            return False
        if not tensors[0].is_cpu:
            return tensors[0].is_cuda and self.engine.why_not is None
        if self._kernels != "triton":
            size = sum(map(_numel, tensors[:_FEW]))
            if size < least and len(tensors) > _FEW:
                size += sum(map(_numel, tensors[_FEW:]))
            if size < least:
                return False
        return self.engine.why_not is None


class Choice(Asked):
    """The kernels of one formula that acts element by element: see :class:`Asked`."""

    def __init__(self, name: str, kernels: str) -> None:
        super().__init__(name, kernels)
        self._others: dict[Any, Choice] = {}

    @cached_property
    def engine(self) -> "Engine":
        """What compiles and launches them."""
        from regplug.kernels.engine import Engine

        return Engine(self._name, self._kernels)

    def other(self, formula: object) -> "Choice":
        """Return the kernels of another formula of the same plugin: that of its value, say.

        Each formula has its own, for one may be compiled where another can't.

        Args:
            formula: a name, or what else tells it apart.
        """
        if formula not in self._others:
            self._others[formula] = Choice(self._name, self._kernels)
        return self._others[formula]

    def serves(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether there is a compiler for these, of one dtype and device, and it pays."""
        return self.pays(tensors, ALTOGETHER) and self.engine.serves(tensors[0])

    def execute(
        self,
        formula: "Formula",
        columns: "Columns",
        by_torch: "Reference",
        scalars: "Columns" = (),
    ) -> None:
        """Write what a formula gives to the first column: by a kernel, and what it leaves by torch.

        Args:
            formula: see :meth:`Engine.apply`.
            columns: see :meth:`Engine.apply`.
            by_torch: does the same by torch's own operations, to any rows of the columns; to this
                rank's parts.
            scalars: see :meth:`Engine.apply`.
        """
        if not self.pays(columns[0]):
            by_torch([shards.locals_of(column) for column in columns])
        elif left := self.apply(formula, columns, 0, by_torch, scalars):
            by_torch([shards.locals_of([column[row] for row in left]) for column in columns])

    def apply(
        self,
        formula: "Formula",
        columns: "Columns",
        target: int,
        reference: "Reference",
        scalars: "Columns" = (),
        nonnegative: Sequence[int] = (),
        *,
        fresh: bool = False,
        by_row: bool = False,
    ) -> Sequence[int]:
        """Execute a formula; return the rows that are left. See :meth:`Engine.apply`."""
        if self._kernels == "foreach":
            return range(len(columns[0]))
        return self.engine.apply(
            formula, columns, target, reference, scalars, nonnegative, fresh=fresh, by_row=by_row
        )

    def total(
        self, formula: "Formula", columns: "Columns", reference: "Reference"
    ) -> tuple[Any, Sequence[int]]:
        """Return the sum over elements, and the rows that are not in it: :meth:`Engine.total`."""
        if self._kernels == "foreach":
            return 0.0, range(len(columns[0]))
        return self.engine.total(formula, columns, reference)

    def describe(self, formula: "Formula", columns: int, like: torch.Tensor) -> str:
        """Return the name of the kernel that tensors like ``like`` get, and why if it is none."""
        return self.engine.describe(formula, columns, like)
