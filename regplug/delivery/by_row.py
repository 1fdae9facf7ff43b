"""The strengths of a table's rows, where tensors that one launch is about have one each."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from regplug.kernels.packed import sent
from regplug.selection.parts import Strengths

__all__ = ["ByRow"]


class ByRow:
    """The strengths of the rows of a table: of each tensor that one launch is about.

    Args:
        strengths: those of the parts.
        parts: which part each row is of.
        device: of the tensors.
        factors: of each part, a further number that rows are given, before the strengths.
    """

    def __init__(
        self,
        strengths: Strengths,
        parts: Sequence[int],
        device: torch.device,
        factors: Mapping[int, float] | None = None,
    ) -> None:
        self._strengths, self._parts = strengths, parts
        numbers = {
            part: (*(() if factors is None else (factors[part],)), *strengths.values(part))
            for part in dict.fromkeys(parts)
        }
        known = sent(torch.tensor(list(numbers.values()), dtype=torch.float64), device)
        each = dict(zip(numbers, (row.unbind() for row in known.unbind()), strict=True))
        self.columns: list[list[torch.Tensor]] = [
            list(column) for column in zip(*(each[part] for part in parts), strict=True)
        ]

    def at(self, row: int) -> AbstractContextManager[None]:
        """Have the plugin's strengths read as those of a row."""
        return self._strengths.at(self._parts[row])

    def reading(self, symbols: Sequence[Any]) -> AbstractContextManager[None]:
        """Have them read as these symbols."""
        return self._strengths.reading(symbols)
