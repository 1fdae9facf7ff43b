"""Where a weight keeps its outputs and its inputs: most as ``(out, in, …)``, some otherwise.

A formula of rows and columns is written for ``(out, in, …)``: ``w[i]`` leads to output ``i``, and
``w[:, j]`` comes from input ``j``. A transposed convolution has ``(in, out/groups, …)``, a grouped
one ``(out, in/groups, …)`` with the inputs of a group only, and the ``Conv1D`` of transformers
``(in, out)``. A :class:`Layout` arranges such a weight for the formula, and what comes of it back.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["ORIENTATIONS", "Layout", "layout_of"]

ORIENTATIONS = ("rows", "columns")


@dataclass(frozen=True)
class Layout:
    """How a weight differs from ``(out, in, …)``.

    Attributes:
        groups: the number of groups, each with inputs and outputs of its own.
        transposed: whether inputs come first.

    >>> import torch
    >>> layer = torch.nn.ConvTranspose2d(3, 5, 2)
    >>> layout = layout_of(layer, layer.weight)
    >>> layout.arranged(layer.weight, "rows").shape
    torch.Size([5, 3, 2, 2])
    """

    groups: int = 1
    transposed: bool = False

    def arranged(self, w: torch.Tensor, orientation: str) -> torch.Tensor:
        """Return ``w`` with rows, or columns, where a formula looks for them.

        For ``"rows"`` ``w[i]`` holds all that leads to output ``i``: the shape is
        ``(out, in/groups, …)``. For ``"columns"`` ``w[:, j]`` holds all that comes from input
        ``j``: ``(out/groups, in, …)``. It is a view, unless groups are to be turned.
        """
        if orientation == "rows":
            return self._turned(w) if self.transposed else w
        return (w if self.transposed else self._turned(w)).transpose(0, 1)

    def is_view(self, orientation: str) -> bool:
        """Whether :meth:`arranged` is a view: then it is the transposed weight, or the weight."""
        return self.groups == 1 or self.transposed != (orientation == "rows")

    def restored(self, found: torch.Tensor, orientation: str) -> torch.Tensor:
        """Return what has the shape of :meth:`arranged` in that of the weight."""
        if orientation == "rows":
            return self._turned(found) if self.transposed else found
        found = found.transpose(0, 1)
        return found if self.transposed else self._turned(found)

    def _turned(self, w: torch.Tensor) -> torch.Tensor:
        """Return (groups·b, a, …) of (groups·a, b, …): dimensions change places in each group."""
        if self.groups == 1:
            return w.transpose(0, 1)
        apart: torch.Tensor = w.unflatten(0, (self.groups, -1))
        return apart.transpose(1, 2).flatten(0, 1)


def layout_of(module: nn.Module, parameter: torch.Tensor) -> Layout | None:
    """Return the layout of a parameter of ``module``, or None if it is ``(out, in, …)``.

    A convolution is known by what it says of itself, so that those of other packages are too, and
    a parameter by its shape: a bias, or the lengths of ``weight_norm``, have no layout.

    >>> layout_of(torch.nn.Conv2d(4, 6, 3, groups=2), torch.empty(6, 2, 3, 3))
    Layout(groups=2, transposed=False)
    >>> layout_of(torch.nn.Linear(4, 6), torch.empty(6, 4)) is None
    True
    """
    if parameter.ndim == 2:
        # The one of transformers (GPT-2), which is a linear layer: by its name, as older ones say
        # no more, or by both of its numbers, whatever its name.
        named = any(cls.__name__ == "Conv1D" for cls in type(module).__mro__)
        known = named or _own(module, "nx") == parameter.shape[0]
        return Layout(1, True) if known and _own(module, "nf") == parameter.shape[1] else None
    if str(_own(module, "original_name")).startswith("ConvTranspose") and parameter.ndim > 2:
        # A traced module, which has kept nothing but its parameters.
        bias = _own(module, "bias")
        outputs = parameter.shape[1] if bias is None else len(bias)
        return Layout(outputs // parameter.shape[1], True)
    ends = _own(module, "in_channels"), _own(module, "out_channels")
    groups = _own(module, "groups") or 1
    if parameter.ndim < 3 or not all(isinstance(end, int) for end in (*ends, groups)):
        return None
    transposed = _own(module, "transposed") is True
    if groups == 1 and not transposed:
        return None
    first, second = ends if transposed else ends[::-1]
    kernel = _own(module, "kernel_size")
    if tuple(parameter.shape[:2]) != (first, second // groups) or (
        isinstance(kernel, tuple) and tuple(parameter.shape[2:]) != kernel
    ):
        return None
    return Layout(groups, transposed)


def _own(module: nn.Module, name: str) -> Any:
    return getattr(module, name, None)
