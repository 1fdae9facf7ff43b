"""Weights of which an engine gives each rank a slice, apart from the model's own parameters.

DeepSpeed's ZeRO lays the parameters of a group one after another in a flat tensor, of which each
rank trains a part in float32: of a parameter it has a run of elements, all of them, or none. A
:class:`Fragment` stands for such a parameter: it has the parameter's shape, and of its elements
those that this rank trains.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from regplug.errors import UnsupportedError

__all__ = ["Fragment", "place", "standing_for"]

# What may be asked of one without its elements.
_ASKED = frozenset(
    (
        *("__hash__", "__len__", "dim", "element_size", "get_device", "is_complex"),
        *("is_contiguous", "is_floating_point", "is_inference", "ndimension", "nelement", "numel"),
        *("requires_grad_", "size", "stride"),
    )
)
_ELEMENTS = frozenset(("data", "T", "H", "mT", "mH", "real", "imag"))


class Fragment(torch.Tensor):
    """A tensor of which this rank has a run of elements.

    It takes no memory of its own. :func:`regplug.local` gives the elements, flat, in the memory of
    the flat tensor; :func:`regplug.full` gathers the whole; arithmetic on it is refused.

    Attributes:
        start: the place of the first of them in the flattened whole.

    >>> flat = torch.arange(6.0)
    >>> w = Fragment.of(flat, shape=(2, 2), offset=3, start=1, count=3, group=None)
    >>> w.shape, w.part
    (torch.Size([2, 2]), tensor([3., 4., 5.]))
    """

    start: int
    group: Any
    _flat: torch.Tensor
    _run: tuple[int, int]

    @classmethod
    def of(
        cls,
        flat: torch.Tensor,
        *,
        shape: Iterable[int],
        offset: int,
        start: int,
        count: int,
        group: Any,
    ) -> "Fragment":
        """Return what stands for a tensor of ``shape``.

        Args:
            flat: the tensor that holds this rank's elements.
            shape: the shape of the whole.
            offset: where they begin in ``flat``.
            start: where they begin in the flattened whole.
            count: how many there are.
            group: the process group over whose ranks the elements are spread.
        """
        blank = torch.empty((), dtype=flat.dtype, device=flat.device)
        made = blank.expand(tuple(shape)).as_subclass(cls)
        made.start, made.group = start, group
        made._flat, made._run = flat, (offset, count)
        return made

    def like(self, part: torch.Tensor) -> "Fragment":
        """Return a tensor that is spread as this one is, of which ``part`` is this rank's."""
        return Fragment.of(
            part.reshape(-1),
            shape=self.shape,
            offset=0,
            start=self.start,
            count=self._run[1],
            group=self.group,
        )

    @property
    def part(self) -> torch.Tensor:
        """The elements that this rank has: a view, made anew, as engines may move the flat one."""
        return self.within(self._flat)

    def within(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the same run of a tensor laid out as the flat one is: of its gradient, say."""
        return flat.detach().narrow(0, *self._run)

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """Return this rank's elements of ``whole``, a tensor alike on all ranks."""
        return whole.reshape(-1).narrow(0, self.start, self._run[1])

    def gathered(self) -> torch.Tensor:
        """Return the whole, alike on all ranks: one all-reduce."""
        part = self.part
        whole = torch.zeros(math.prod(self.shape), dtype=part.dtype, device=part.device)
        self.cut(whole).copy_(part)
        dist.all_reduce(whole, group=self.group)
        return whole.view(self.shape)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Fragment(shape={tuple(self.shape)}, start={self.start}, part={self.part})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__", "__delete__"):
            asks = func.__self__.__name__ not in _ELEMENTS
        else:
            asks = name in _ASKED
        if asks:
            usual: Any = super().__torch_function__
            return usual(func, types, args, kwargs or {})
        if name in ("detach", "clone") and not args[1:]:
            (of,) = args
            return of.like(of.part.clone()) if name == "clone" else _detached(of)
        raise UnsupportedError(
            f"{name or func}: of this weight each rank has a part only, apart from the model: work "
            "on regplug.local(w), this rank's elements, or on regplug.full(w)"
        )


def _detached(of: Fragment) -> Fragment:
    offset, count = of._run
    return Fragment.of(
        of._flat, shape=of.shape, offset=offset, start=of.start, count=count, group=of.group
    )


_standing: Any = WeakIdKeyDictionary()


def place(parameter: nn.Parameter, fragment: Fragment) -> nn.Parameter:
    """Have ``fragment`` stand for ``parameter`` of a model, and return it as a parameter."""
    standing = nn.Parameter(fragment, requires_grad=parameter.requires_grad)
    _standing[parameter] = standing
    return standing


def standing_for(parameter: nn.Parameter) -> nn.Parameter:
    """Return what is trained in the place of ``parameter``: itself, but for an engine's."""
    return _standing.get(parameter, parameter) if _standing else parameter
