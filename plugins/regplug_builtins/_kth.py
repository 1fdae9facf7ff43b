"""The k-th smallest of numbers that are spread over tensors, devices and ranks."""

from collections.abc import Callable, Iterable, Iterator

import torch

from regplug import total

__all__ = ["kth_smallest"]

_BITS = 16
_BINS = 1 << _BITS
_PARTS = 1 << 30  # of a share: products with 2³³ weights are within 64 bits


Numbers = Iterable[tuple[torch.Tensor, torch.Tensor]]


def kth_smallest(numbers: Callable[[], Numbers], share: float) -> torch.Tensor:
    """Return the ⌈share·n⌉-th smallest of n numbers, a little enlarged, and 0 for none of them.

    Their bits are sorted by sixteen at a time: numbers that are not negative are ordered as their
    bits are, so a count of the first sixteen tells in which of 65,536 bins the answer lies, and
    one of the next sixteen in that bin where. Counts add up over ranks, and nothing leaves the
    device. Four units in the last place are added, so that what is computed from it by a product
    is no smaller than the number was.

    Args:
        numbers: returns pairs of a parameter and this rank's numbers of it: of one dtype, float32
            or float64, and not negative. What is infinite or no number is left out. It is called
            once for each sixteen bits, so that no more than one tensor of numbers is in memory.
        share: within [0, 1].

    Returns:
        A 0-d tensor of that dtype on the device of the first parameter.

    >>> w = torch.tensor([4.0, 1.0, 3.0, 2.0])
    >>> round(kth_smallest(lambda: [(w, w)], 0.5).item(), 3)
    2.0
    """
    first, part = next(iter(numbers()))
    kind, whole = part.dtype, torch.int32 if part.dtype == torch.float32 else torch.int64
    del part
    size = torch.finfo(kind).bits
    infinite = torch.tensor(torch.inf, dtype=kind, device="cpu").view(whole)
    prefix = torch.zeros(1, dtype=torch.int64, device=first.device)
    for shift in range(size - _BITS, -1, -_BITS):
        begins = shift == size - _BITS
        counts = total(_counts(numbers(), whole, shift, None if begins else prefix))[:_BINS]
        if begins:
            finite = counts[: int(infinite) >> shift].sum(0, keepdim=True)
            # In whole numbers: not every device has float64. And rounded down before it is rounded
            # up: 0.1·10 of a share that was computed is 1, not a little more.
            rank = wanted = -(-finite * int(share * _PARTS + 1e-6) // _PARTS)
        below = counts.cumsum(0)
        place = torch.searchsorted(below, rank).clamp(max=_BINS - 1)
        rank = rank - (below - counts).gather(0, place)
        prefix = (prefix << _BITS) | place
    enlarged = torch.where((wanted > 0) & (prefix > 0), prefix + 4, 0)
    return enlarged.to(whole).view(kind).squeeze(0)


def _counts(
    numbers: Numbers, whole: torch.dtype, shift: int, prefix: torch.Tensor | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for parameter, part in numbers:
        yield parameter, _counted(part.contiguous().view(whole).flatten(), shift, prefix)


def _counted(bits: torch.Tensor, shift: int, prefix: torch.Tensor | None) -> torch.Tensor:
    """Return how many have each sixteen bits from ``shift`` on, of those that begin as found."""
    bins = (bits >> shift) & (_BINS - 1)
    if prefix is not None:
        begun = (bits >> (shift + _BITS)) == prefix.to(bits.device, non_blocking=True)
        bins = torch.where(begun, bins, _BINS)
    if bits.is_cpu:
        return torch.bincount(bins, minlength=_BINS + 1)
    # Which asks the device for the largest.
    counts = torch.zeros(_BINS + 1, dtype=torch.int64, device=bits.device)
    return counts.scatter_add_(0, bins.long(), torch.ones_like(bins, dtype=torch.int64))
