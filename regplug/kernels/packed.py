"""A table on the device that a kernel is launched on."""

from collections.abc import Sequence
from typing import Any

import torch

from regplug.kernels.expression import Expression
from regplug.kernels.tables import Table

__all__ = ["BLOCK", "Packed", "sent"]

BLOCK = 1024
"""Elements of one program."""


class Packed:
    """A table on the device, sent there anew only where something of it changed."""

    def __init__(self, table: Table, device: torch.device) -> None:
        programs = [-(-size // BLOCK) for size in table.sizes]
        counts = torch.tensor(programs, dtype=torch.int64, device="cpu")
        self.device = device
        self.programs = int(counts.sum()) if programs else 0
        self.sizes = sent(torch.tensor(table.sizes, dtype=torch.int64, device="cpu"), device)
        self.firsts = sent((counts.cumsum(0) - counts).to(torch.int32), device)
        every = torch.arange(len(programs), dtype=torch.int32, device="cpu")
        rows = torch.repeat_interleave(every, counts)
        self.rows = sent(rows, device)
        self._addresses: Any = None
        self._numbers: dict[Expression, tuple[list[float], torch.Tensor]] = {}
        self.addresses = self.sizes
        self.of = list(table.sizes)

    def send_addresses(self, addresses: list[list[int]]) -> None:
        """Have these addresses on the device."""
        if addresses != self._addresses:
            self._addresses = addresses
            self.addresses = sent(
                torch.tensor(addresses, dtype=torch.int64, device="cpu"), self.device
            )

    def numbers(self, expression: Expression, numbers: Sequence[float]) -> torch.Tensor:
        """Return the numbers of an expression, on the device."""
        known = self._numbers.get(expression)
        if known is None or known[0] != list(numbers):
            own = torch.tensor(list(numbers) or [0.0], dtype=torch.float64, device="cpu")
            known = self._numbers[expression] = (list(numbers), sent(own, self.device))
        return known[1]


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a CPU tensor on a device, with no wait for either."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
