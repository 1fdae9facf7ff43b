"""Rows and columns of weights of any number of dimensions.

A *row* holds the weights that lead to one output: ``w[i]`` of a linear layer's ``(out, in)``, one
filter of a convolution's ``(out, in, height, width)``, the vector of one entry of an embedding, one
gate of one unit of a recurrent layer. A *column* holds those that come from one input: ``w[:, j]``.
A session gives the weights of transposed convolutions, ``(in, out, …)``, and of grouped ones
arranged so that this holds for them too (:mod:`regplug.backend.layouts`): the columns of a grouped
convolution have the outputs of their own group alone. Keras' kernels are transposed, ``(in, out)``
and ``(height, width, in, out)``: a row here is Keras' ``axis=0`` there, and ``axis=[0, 1, 2]`` for
a convolution.
"""

import torch

from regplug import Selection, SessionView
from regplug.errors import SelectionError, SpecError

__all__ = ["GROUPS", "as_matrix", "check_dimensions", "checked_groups", "length", "norms", "within"]

GROUPS = ("rows", "columns")


def checked_groups(groups: str) -> str:
    """Return ``groups`` if it is ``"rows"`` or ``"columns"``.

    Raises:
        SpecError: it is neither.
    """
    if groups not in GROUPS:
        raise SpecError(f"groups must be 'rows' or 'columns', got {groups!r}")
    return groups


def norms(w: torch.Tensor, groups: str) -> torch.Tensor:
    """Return the Euclidean norm of each group, with ``w``'s number of dimensions.

    >>> norms(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), "rows")
    tensor([[5.],
            [1.]])
    """
    size: torch.Tensor = torch.linalg.vector_norm(w, dim=within(w, groups), keepdim=True)
    return size


def within(w: torch.Tensor, groups: str) -> list[int]:
    """Return the dimensions over which the elements of one group lie.

    >>> within(torch.empty(4, 3, 2), "columns")
    [0, 2]
    """
    _check(w)
    place = GROUPS.index(groups)
    return [dimension for dimension in range(w.ndim) if dimension != place]


def length(w: torch.Tensor, groups: str) -> float:
    """Return the number of elements of each group.

    >>> length(torch.empty(4, 3, 2), "columns")
    8.0
    """
    count = w.shape[GROUPS.index(groups)]
    # Where it is recorded for a kernel, it has no number that could be asked for.
    return 0.0 if isinstance(count, int) and count == 0 else w.numel() / count


def as_matrix(w: torch.Tensor, groups: str) -> torch.Tensor:
    """Return ``w`` as a matrix whose rows are the groups."""
    _check(w)
    return (w if groups == "rows" else w.transpose(0, 1)).flatten(1)


def _check(w: torch.Tensor) -> None:
    # One that was lazy when the plugin was attached shows its shape here.
    if w.ndim < 2:
        raise SelectionError(
            f"a parameter of shape {tuple(w.shape)} has neither rows nor columns: exclude it with "
            "where=[…, '!…']"
        )


def check_dimensions(plugin: str, session: SessionView, selection: Selection) -> None:
    """Refuse parameters that have no rows and columns.

    Raises:
        SelectionError: one has fewer than two dimensions.
    """
    for entry in session.coverage(selection):
        if entry.parameter.ndim < 2:
            raise SelectionError(
                f"{plugin}: {entry.name} has shape {tuple(entry.parameter.shape)}, hence neither "
                f"rows nor columns: exclude it with where=[…, '!{entry.name}']"
            )
