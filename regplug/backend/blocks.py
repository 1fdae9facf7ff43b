"""Element-wise work on many tensors in pieces that fit the cache, with no model-sized temporary.

A temporary as large as the model costs page faults, several times the arithmetic itself; one of a
few mebibytes is handed out again by the allocator (:func:`keep_freed_memory`) and stays in the
cache. So a large tensor is cut into flat blocks, and small tensors are put together into batches
for ``torch._foreach``.
"""

import functools
import threading
from collections.abc import Iterator, Sequence

import torch

__all__ = [
    "BLOCK",
    "PLAIN",
    "TINY",
    "batches",
    "block_of",
    "is_dense",
    "keep_freed_memory",
    "scratch",
]

BLOCK = 1 << 20
"""Elements in one block: 4 MiB in float32. Smaller ones pay for their number: each costs some 20 µs
over its share of memory traffic (measured), larger ones no less."""

_BLOCK_ELSEWHERE = 1 << 24

TINY = 1 << 15
"""A tensor of fewer elements costs the calls for it, not memory traffic."""


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.kept: dict[tuple[torch.dtype, str], torch.Tensor] = {}


_buffers = _Buffers()

PLAIN = (torch.Tensor, torch.nn.Parameter)
"""The types of tensors that are no more than that: others (``DTensor``, the fakes that compilers
trace with) have memory of their own kind."""


def scratch(like: torch.Tensor, slot: str = "") -> torch.Tensor | None:
    """Return memory for a result like ``like`` that is used up at once, as a value for ``out=``.

    A large block gets the same memory each time, which stays in the cache. What the allocator
    hands out may not: its alignment leaves crumbs beside a block, and a freed block between
    crumbs that are in use is too small for the next. The heap then grows by a few blocks.

    Args:
        like: gives shape, dtype and device.
        slot: a name that tells results apart which are needed at the same time.

    Returns:
        A tensor of any content, good until this thread asks for one of its dtype and slot again;
        or None where the allocator does as well, as for all that is smaller than half a block.

    >>> w = torch.randn(1000, 1000)
    >>> signs = torch.sign(w, out=scratch(w))
    >>> scratch(w).data_ptr() == signs.data_ptr()
    True
    """
    size = like.numel()
    if not BLOCK // 2 <= size <= BLOCK:
        return None
    if not (type(like) in PLAIN and like.is_cpu and like.is_contiguous()):
        return None
    kept, key = _buffers.kept, (like.dtype, slot)
    if key not in kept:
        with torch.inference_mode(mode=False):  # an inference tensor is of no use elsewhere
            kept[key] = torch.empty(BLOCK, dtype=like.dtype, device=like.device)
    return kept[key][:size].view(like.shape)


def keep_freed_memory() -> None:
    """Have the C library's allocator keep what is freed for the next block.

    glibc maps each allocation above 128 KiB anew and gives it back when it is freed, so that every
    temporary pays page faults, five to twenty times its arithmetic, until the program has once
    freed something larger: the threshold follows the largest such block. Most programs free
    one within a step; this does it at once, by 16 MiB that are never touched. Elsewhere it is
    nothing.
    """
    torch.empty(16 << 20, dtype=torch.uint8, device="cpu")


def batches(columns: Sequence[Sequence[torch.Tensor]]) -> Iterator[list[list[torch.Tensor]]]:
    """Yield ``columns`` in batches of at most :data:`BLOCK` elements a column (:func:`block_of`).

    Args:
        columns: lists of equal length; the tensors in one row have the same shape. Each row is
            handled alike, so element ``i`` of a piece of one column belongs to element ``i`` of
            the same piece of the others.

    Yields:
        For each batch one list per column. The pieces are views: flat ones wherever the tensors of
        a row share a dense layout.
    """
    sizes = [tensor.numel() for tensor in columns[0]]
    block = BLOCK if not sizes or columns[0][0].is_cpu else block_of(columns[0][0].device)
    if sum(sizes) <= block and all(sizes):  # the whole of a small model
        if sizes:
            yield [list(column) for column in columns]
        return
    batch: list[tuple[torch.Tensor, ...]] = []
    filled = 0
    for size, row in zip(sizes, zip(*columns, strict=True), strict=True):
        if size == 0:
            continue
        if size > block:
            for pieces in _cut(row, block):
                yield [[piece] for piece in pieces]
            continue
        if filled + size > block:
            yield [list(column) for column in zip(*batch, strict=True)]
            batch, filled = [], 0
        batch.append(row)
        filled += size
    if batch:
        yield [list(column) for column in zip(*batch, strict=True)]


@functools.cache
def block_of(device: torch.device) -> int:
    """Return the elements of a block on a device that is no CPU.

    It has no cache to fit, and each block is launches: 64 MiB in float32, and on a GPU no more
    than a fiftieth of what is free.
    """
    if device.type != "cuda":
        return _BLOCK_ELSEWHERE
    free, _ = torch.cuda.mem_get_info(device)
    return max(BLOCK, min(_BLOCK_ELSEWHERE, free // 200))


def _cut(row: tuple[torch.Tensor, ...], block: int) -> Iterator[tuple[torch.Tensor, ...]]:
    flat = _flattened(row)
    if flat is not None:
        yield from zip(*(tensor.split(block) for tensor in flat), strict=True)
        return
    # Layouts differ (a transposed gradient, say): equal slices of the first dimension serve.
    rows = max(1, block * row[0].shape[0] // row[0].numel())
    yield from zip(*(tensor.split(rows) for tensor in row), strict=True)


def _flattened(row: tuple[torch.Tensor, ...]) -> list[torch.Tensor] | None:
    if all(tensor.is_contiguous() for tensor in row):
        return [tensor.view(-1) for tensor in row]
    if len({tensor.stride() for tensor in row}) == 1 and is_dense(row[0]):
        return [tensor.as_strided((tensor.numel(),), (1,)) for tensor in row]
    return None


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill their memory without a gap, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
