"""Fixed points that are found without the host's waiting for the device: :func:`iterated`."""

from collections.abc import Callable

import torch

from regplug.backend.blocks import PLAIN

__all__ = ["iterated"]


def iterated(
    body: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, rounds: int
) -> torch.Tensor:
    """Return ``body(… body(body(start)))``, for formulas that have to iterate.

    On the CPU it stops as soon as a round changes nothing. To ask that of another device would have
    the host wait for it, so there all rounds are done, unless one kernel is made of the formula, in
    which each row stops by itself. So ``body`` should leave alone what has settled.

    Args:
        body: returns what is shaped like its argument. It is called once where it is recorded for
            a kernel.
        start: the first argument.
        rounds: how many there are at most.

    Returns:
        What the last round gave, shaped like ``start``.

    >>> iterated(lambda x: (x + 2 / x) / 2, torch.tensor(1.0), rounds=20)     # √2, by Newton
    tensor(1.4142)
    """
    if type(start) not in PLAIN:
        from regplug.kernels.symbols import Symbol

        if isinstance(start, Symbol):
            return start.tracing.iterated(body, start, rounds)
    for _ in range(rounds):
        found = body(start)
        if found.is_cpu and torch.equal(found, start):
            return found
        start = found
    return start
