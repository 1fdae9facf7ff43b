"""A new kernel of rows against torch's own operations, on some groups, and on odd ones."""

from collections.abc import Callable, Collection, Sequence

import torch

from regplug.kernels.samples import compared

__all__ = ["disagreement_on_rows"]

_GROUPS = 6

_ODD = (0.0, -0.0, 1.0, -1.0, 0.01, -3.0, 1e-30, -1e30)
_ODDER = (float("inf"), float("-inf"), float("nan"))

_Run = Callable[[list[torch.Tensor]], None]


def disagreement_on_rows(
    compiled: _Run,
    reference: _Run,
    tensors: Sequence[torch.Tensor],
    axis: int,
    target: int,
    nonnegative: Collection[int],
) -> str | None:
    """Return in what two ways of one computation differ by more than rounding, or None.

    Args:
        compiled: the one, given corresponding tensors, in place.
        reference: the other.
        tensors: of which a sample is taken; they are not changed.
        axis: the dimension of the groups.
        target: the tensor that is written.
        nonnegative: those that have no negative elements.
    """
    size = min(tensors[0].shape[axis], _GROUPS)
    sample = [t.detach().narrow(axis, 0, size).clone() for t in tensors]
    odd = [_odd(t, c, axis, c in nonnegative) for c, t in enumerate(tensors)]

    def on_columns(run: _Run) -> Callable[[list[list[torch.Tensor]]], None]:
        return lambda columns: run([column[0] for column in columns])

    for given in (sample, odd):
        # Of views all tensors of a row are to lie alike.
        rows = [[t.contiguous()] for t in given]
        why = compared(rows, on_columns(compiled), on_columns(reference), target)
        if why is not None:
            return why
    return None


def _odd(like: torch.Tensor, column: int, axis: int, nonnegative: bool) -> torch.Tensor:
    """Return groups of odd numbers: of zeros, of tiny and of large ones, some with no number."""
    # Triton's interpreter takes the least of bfloat16 for zeros, which a device does not.
    tiny = torch.finfo(like.dtype).tiny * (2.0 if like.dtype == torch.bfloat16 else 0.25)
    ordinary = [*_ODD[:6], tiny, 2.0]
    groups = [[0.0] * 8, ordinary, [tiny] * 8, [1e-3] * 7 + [-0.0], ordinary[::-1]]
    groups += [[*ordinary[:7], value] for value in _ODDER]
    shift = 3 * column  # so that unlike numbers correspond
    values = torch.tensor([g[shift % 8 :] + g[: shift % 8] for g in groups])
    values = values.to(like.device, like.dtype)
    if nonnegative:
        values = values.abs()
    shaped = values.view(8, 8, *[1] * (like.ndim - 2))
    return shaped.transpose(0, 1).contiguous() if axis else shaped
